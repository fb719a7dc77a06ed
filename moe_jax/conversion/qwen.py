"""What the mixtures of Qwen have in common.

A layer l is sparse where `mlp_only_layers` has it not and l + 1 is a multiple
of `decoder_sparse_step`.
"""

from typing import Any

from moe_jax.conversion.families import base

Config = dict[str, Any]


def sparse(c: Config) -> tuple[bool, ...]:
  """By layer."""
  dense, step = c['mlp_only_layers'] or (), c['decoder_sparse_step']
  return tuple(
    i not in dense and (i + 1) % step == 0
    for i in range(c['num_hidden_layers'])
  )


def config(model: Any, moe: Any, kinds: base.Kinds) -> Config:
  """Of a config.json."""
  return base.sizes_config(model, moe, kinds) | {
    'head_dim': model.d_head,
    'decoder_sparse_step': 1,
    'mlp_only_layers': [i for i, s in enumerate(kinds.sparse) if not s],
    'moe_intermediate_size': moe.d_ff,
    'num_experts': moe.num_experts,
    'norm_topk_prob': kinds.router.get('renormalize', True),
  }
