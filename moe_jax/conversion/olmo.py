"""What the mixtures of Ai2 have in common: they differ in where norms stand.

Queries and keys are normalised over the width of all heads; all layers are
sparse.
"""

from typing import Any

from moe_jax.conversion import parts
from moe_jax.conversion.families import base

Config = dict[str, Any]


def fields(c: Config, norm_at: str, clip: float = 0.0) -> dict[str, Config]:
  """Of our config."""
  kind = base.attention(
    kv_heads=base.kv_heads(c), bias=base.bias(c), qk_norm='width', clip=clip
  )
  own = c['num_experts'], c['intermediate_size'], base.top_k(c)
  return {
    'model': base.model_fields(c, attention=(kind,), norm_at=norm_at),
    'moe': base.moe_fields(c, *own),
  }


def table(c: Config, norms: tuple[str, str], memory: bool) -> parts.Table:
  """Every tensor; `norms` of attention and FFN by name."""
  t = parts.table(c, E=c['num_experts'], F=c['intermediate_size'])
  parts.frame(t, c['tie_word_embeddings'])
  for i in range(c['num_hidden_layers']):
    at, to = parts.layer(i)
    for name, ours in zip(norms, ('attention_norm', 'moe_norm')):
      t.norm(f'{at}.{name}', f'{to}/{ours}')
    parts.heads(t, at, to, base.bias(c))
    parts.wide_norms(t, at, to)
    parts.router(t, f'{at}.mlp.gate.weight', to)
    parts.experts(t, f'{at}.mlp.experts', f'{to}/moe/experts', memory=memory)
  return t


def config(model: Any, moe: Any, kinds: base.Kinds) -> Config:
  """Of a config.json."""
  return base.sizes_config(model, moe, kinds) | {
    'intermediate_size': moe.d_ff,
    'attention_bias': kinds.of('bias', 'none') == 'all',
    'num_experts': moe.num_experts,
    'norm_topk_prob': kinds.router.get('renormalize', True),
  }
