"""DeepSeek-V3's router on grouped-query attention, as others have taken it.

Sigmoids with a bias of the selection, shared experts, the first layers dense.
"""

from typing import Any

from moe_jax.conversion import parts, rope
from moe_jax.conversion.families import base

Config = dict[str, Any]
DEFAULTS: Config = {
  'n_shared_experts': 1,
  'routed_scaling_factor': 1.0,
  'n_group': 1,
  'topk_group': 1,
  'first_k_dense_replace': 1,
  'norm_topk_prob': True,
}


def router(c: Config) -> str:
  """DeepSeek-V3's, as our call string has it."""
  return rope.call(
    'sigmoid_top_k',
    k=c['num_experts_per_tok'],
    renormalize=c['norm_topk_prob'],
    scaling=float(c['routed_scaling_factor']),
    groups=c['n_group'],
    kept_groups=c['topk_group'],
  )


def fields(c: Config, bias: str, qk_norm: bool) -> dict[str, Config]:
  """Of our config; `bias` of the attention, `qk_norm` by heads."""
  kind = base.attention(
    kv_heads=base.kv_heads(c),
    bias=bias,
    qk_norm='head' if qk_norm else False,
  )
  first, n = c['first_k_dense_replace'], c['num_hidden_layers']
  moe = base.moe_fields(
    *(c, c['n_routed_experts'], c['moe_intermediate_size'], router(c)),
    layers=base.sparse([i >= first for i in range(n)]),
    dense_branch='shared',
    dense_branch_d_ff=c['n_shared_experts'] * c['moe_intermediate_size'],
    balance=('loss_free_bias(rate=0.001)',),
  )
  return {'model': base.model_fields(c, attention=(kind,)), 'moe': moe}


def table(c: Config, bias: str, qk_norm: bool, memory: bool) -> parts.Table:
  """Every tensor."""
  F = c['moe_intermediate_size']
  t = parts.table(c, E=c['n_routed_experts'], F=F)
  parts.frame(t, c['tie_word_embeddings'])
  for i in range(c['num_hidden_layers']):
    at, to = parts.layer(i)
    sparse = i >= c['first_k_dense_replace']
    parts.norms(t, at, to, 'moe_norm' if sparse else 'ffn_norm')
    parts.heads(t, at, to, bias)
    if qk_norm:
      t.norm(f'{at}.self_attn.q_norm', f'{to}/attention/query_norm', 'J')
      t.norm(f'{at}.self_attn.k_norm', f'{to}/attention/key_norm', 'J')
    if not sparse:
      parts.dense(t, f'{at}.mlp', to, c['intermediate_size'])
      continue
    parts.router(t, f'{at}.mlp.gate.weight', to)
    parts.selection_bias(t, f'{at}.mlp.gate.e_score_correction_bias', to)
    parts.experts(t, f'{at}.mlp.experts', f'{to}/moe/experts', memory=memory)
    parts.shared(t, f'{at}.mlp.shared_experts', to, c['n_shared_experts'] * F)
  return t


def config(model: Any, moe: Any, kinds: base.Kinds) -> Config:
  """Of a config.json, what `fields` reads."""
  return base.sizes_config(model, moe, kinds) | {
    'head_dim': model.d_head,
    'n_routed_experts': moe.num_experts,
    'moe_intermediate_size': moe.d_ff,
    'n_shared_experts': moe.dense_branch_d_ff // moe.d_ff,
    'first_k_dense_replace': kinds.sparse.index(True),
    'n_group': kinds.router.get('groups', 1),
    'topk_group': kinds.router.get('kept_groups', 1),
    'norm_topk_prob': kinds.router.get('renormalize', True),
    'routed_scaling_factor': kinds.router.get('scaling', 2.5),
  }
