"""OLMoE: raw top-8 of 64, queries and keys normalised over their whole width.

Niklas Muennighoff et al., "OLMoE: Open Mixture-of-Experts Language Models",
2024, arXiv:2409.02060; transformers' `olmoe`.
"""

from moe_jax.conversion import parts, rope
from moe_jax.conversion.families import base


class Olmoe(base.Decoder):
  model_types = ('olmoe',)
  architecture = 'OlmoeForCausalLM'
  each = 'num_experts'
  aux = 0.01
  symbols = (None, 50279)
  aliases = {'num_local_experts': 'num_experts'}
  defaults = {
    'vocab_size': 50304,
    'hidden_size': 2048,
    'intermediate_size': 2048,
    'num_hidden_layers': 16,
    'num_attention_heads': 16,
    'num_key_value_heads': None,
    'hidden_act': 'silu',
    'rms_norm_eps': 1e-5,
    'max_position_embeddings': 4096,
    'tie_word_embeddings': False,
    'attention_bias': False,
    'clip_qkv': None,
    'num_experts_per_tok': 8,
    'num_experts': 64,
    'norm_topk_prob': False,
  }
  free = ('clip_qkv',)

  def check(self, c):
    clip = c['clip_qkv']
    fits = clip is None or (type(clip) in (int, float) and clip > 0)
    return base.check_heads(c) + [f'clip_qkv={clip!r}'] * (not fits)

  def fields(self, c):
    kind = base.attention(
      kv_heads=base.kv_heads(c),
      bias='all' if c['attention_bias'] else 'none',
      qk_norm='width',
      clip=float(c['clip_qkv'] or 0),
    )
    router = rope.call(
      'top_k', k=c['num_experts_per_tok'], renormalize=c['norm_topk_prob']
    )
    E, F = c['num_experts'], c['intermediate_size']
    return {
      'model': base.model_fields(c, attention=(kind,)),
      'moe': base.moe_fields(c, E, F, router),
    }

  def table(self, c, memory=False):
    t = parts.table(c, E=c['num_experts'], F=c['intermediate_size'])
    parts.frame(t, c['tie_word_embeddings'])
    for i in range(c['num_hidden_layers']):
      at, to = parts.layer(i)
      parts.norms(t, at, to, 'moe_norm')
      parts.heads(t, at, to, 'all' if c['attention_bias'] else 'none')
      parts.wide_norms(t, at, to)
      parts.router(t, f'{at}.mlp.gate.weight', to)
      parts.experts(t, f'{at}.mlp.experts', f'{to}/moe/experts', memory=memory)
    return t

  def to_config(self, model, moe, kinds):
    own = base.sizes_config(model, moe, kinds)
    return own | {
      'intermediate_size': moe.d_ff,
      'num_key_value_heads': kinds.of('kv_heads', 0) or model.num_heads,
      'attention_bias': kinds.of('bias', 'none') == 'all',
      'clip_qkv': kinds.of('clip', 0.0) or None,
      'num_experts': moe.num_experts,
      'norm_topk_prob': kinds.router.get('renormalize', True),
    }
