"""Multi-head latent attention and shared experts, as DeepSeek has them.

DeepSeek-AI, 2024, arXiv:2405.04434, section 2.1; transformers' `deepseek_v2`
and `deepseek_v3`. Of YaRN `mscale_all_dim` multiplies the scores, twice.
"""

from typing import Any

from moe_jax import registry
from moe_jax.conversion import parts, rope
from moe_jax.conversion.families import base

Config = dict[str, Any]


def check(c: Config) -> list[str]:
  """What cannot be represented."""
  wrong = base.check_heads(c | {'head_dim': c['qk_rope_head_dim']})
  H = c['num_attention_heads']
  if c['num_key_value_heads'] not in (None, H):
    wrong.append(f'num_key_value_heads={c["num_key_value_heads"]} of {H} heads')
  if c['first_k_dense_replace'] >= c['num_hidden_layers']:
    wrong.append(f'first_k_dense_replace={c["first_k_dense_replace"]}')
  return wrong


def fields(c: Config, interleaved: bool) -> Config:
  """Of our `model`."""
  own = rope.read(c)
  width, scale = c['qk_nope_head_dim'] + c['qk_rope_head_dim'], 0.0
  if own['rope_type'] != 'default' and own.get('mscale_all_dim'):
    by = rope.mscale(own['factor'], own['mscale_all_dim'])
    scale = width**-0.5 * by * by
  kind = base.attention(
    'mla',
    kv_rank=c['kv_lora_rank'],
    d_nope=c['qk_nope_head_dim'],
    d_rope=c['qk_rope_head_dim'],
    d_value=c['v_head_dim'],
    q_rank=c['q_lora_rank'] or 0,
    scale=scale,
  )
  return base.model_fields(
    c | {'head_dim': c['qk_rope_head_dim']},
    attention=(kind,),
    positions=rope.positions(c, interleaved),
  )


def shared(c: Config) -> Config:
  """Of our `moe`: which layers, and the experts that all tokens take."""
  first, n = c['first_k_dense_replace'], c['num_hidden_layers']
  return {
    'layers': base.sparse([i >= first for i in range(n)]),
    'dense_branch': 'shared',
    'dense_branch_d_ff': c['n_shared_experts'] * c['moe_intermediate_size'],
  }


def table(c: Config, memory: bool) -> parts.Table:
  """Every tensor of DeepSeek-V2, and of V3 but the bias."""
  N, P = c['qk_nope_head_dim'], c['qk_rope_head_dim']
  R, W, F = c['kv_lora_rank'], c['v_head_dim'], c['moe_intermediate_size']
  own = {'A': N + P, 'S': R + P, 'X': N + W, 'R': R, 'W': W}
  own |= {'Q': c['q_lora_rank'] or 0}
  t = parts.table(c, E=c['n_routed_experts'], F=F, **own)
  parts.frame(t, c['tie_word_embeddings'])
  for i in range(c['num_hidden_layers']):
    at, to = parts.layer(i)
    sparse = i >= c['first_k_dense_replace']
    parts.norms(t, at, to, 'moe_norm' if sparse else 'ffn_norm')
    _attention(t, at, to, c['q_lora_rank'])
    if not sparse:
      parts.dense(t, f'{at}.mlp', to, c['intermediate_size'])
      continue
    parts.router(t, f'{at}.mlp.gate.weight', to)
    parts.experts(t, f'{at}.mlp.experts', f'{to}/moe/experts', memory=memory)
    parts.shared(t, f'{at}.mlp.shared_experts', to, c['n_shared_experts'] * F)
  return t


def config(model: Any, moe: Any, kinds: base.Kinds) -> Config:
  """Of a config.json, what `fields` and `shared` read."""
  own = base.sizes_config(model, moe, kinds)
  width = kinds.of('d_nope', 0) + kinds.of('d_rope', 0)
  scaling, scale = own.get('rope_scaling'), kinds.of('scale', 0.0)
  if scaling and scale:
    _, yarn = registry.parse(registry.parse(model.positions)[1]['scaling'])
    # What mscale_all_dim was: published ones have few digits.
    by = ((scale * width**0.5) ** 0.5 - 1) / (rope.mscale(yarn['factor']) - 1)
    scaling['mscale'] = scaling['mscale_all_dim'] = round(by, 6)
    if scaling.get('attention_factor') == 1.0:
      del scaling['attention_factor']
  first = kinds.sparse.index(True)
  return own | {
    'kv_lora_rank': kinds.of('kv_rank', 0),
    'q_lora_rank': kinds.of('q_rank', 0) or None,
    'qk_rope_head_dim': kinds.of('d_rope', 0),
    'qk_nope_head_dim': kinds.of('d_nope', 0),
    'v_head_dim': kinds.of('d_value', 0),
    'n_routed_experts': moe.num_experts,
    'moe_intermediate_size': moe.d_ff,
    'n_shared_experts': moe.dense_branch_d_ff // moe.d_ff,
    'first_k_dense_replace': first,
  }


def _attention(t: parts.Table, at: str, to: str, q_rank: int | None) -> None:
  """Multi-head latent attention.

  Of sizes: Q rank of queries, R of keys and values, N and P head widths without
  and with positions, A their sum, X that of keys without and values, W values.
  """
  at, to = f'{at}.self_attn', f'{to}/attention'
  rank = 'D'
  if q_rank is not None:
    rank = 'Q'
    t.one(f'{at}.q_a_proj.weight', 'Q D', f'{to}/query_down', 'D Q')
    t.norm(f'{at}.q_a_layernorm', f'{to}/query_norm', 'Q')
  name = 'q_proj' if q_rank is None else 'q_b_proj'
  t.one(f'{at}.{name}.weight', f'HA {rank}', f'{to}/query', f'{rank} H A')
  t.one(f'{at}.kv_a_proj_with_mqa.weight', 'S D', f'{to}/latent', 'D S')
  t.norm(f'{at}.kv_a_layernorm', f'{to}/latent_norm', 'R')
  t.one(f'{at}.kv_b_proj.weight', 'HX R', f'{to}/expand', 'R H X')
  t.one(f'{at}.o_proj.weight', 'D HW', f'{to}/out', 'H W D')
