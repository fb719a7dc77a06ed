"""The expert of Autonomy-of-Experts: its gate has low rank.

Ang Lv et al., "Autonomy-of-Experts Models", 2025, arXiv:2501.13074, section 3:
(silu(x W_down W_gate) * x W_up) W_o, where routers see W_down. The width that
makes it as large as a gated expert of width d_ff is (3 D d_ff - d_low D) /
(d_low + 2 D).
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.errors import UserError
from moe_jax.experts import base


@registry.register
@dataclasses.dataclass(frozen=True)
class Autonomy(base.Experts):
  """d_ff: the wide one. d_low: the rank of the gate (paper: about D / 3)."""

  d_ff: int
  d_low: int = 64
  dropout: float = 0.0
  dropout_mask: str = 'row'
  init_scale: float = 1.0

  kept, made = 5, 2
  axes = {
    'down': ('expert', 'embed', None),
    'wi_gate': ('expert', None, 'mlp'),
    'wi_up': ('expert', 'embed', 'mlp'),
    'wo': ('expert', 'mlp', 'embed'),
  }

  def __post_init__(self):
    base.check(self.d_ff, 'silu', self.dropout, self.dropout_mask)
    if self.d_low < 1:
      raise UserError(f'autonomy: d_low={self.d_low} must be at least 1')

  def init(self, key, E, D):
    keys, s = jax.random.split(key, 4), self.init_scale
    return {
      'down': base.init_kernel(keys[0], E, D, self.d_low, s),
      'wi_gate': base.init_kernel(keys[1], E, self.d_low, self.d_ff, s),
      'wi_up': base.init_kernel(keys[2], E, D, self.d_ff, s),
      'wo': base.init_kernel(keys[3], E, self.d_ff, D, s),
    }

  def __call__(self, params, rows, ops):
    low = ops.dot(rows, params['down'])
    hidden = jax.nn.silu(ops.dot(low, params['wi_gate']))
    hidden *= ops.dot(rows, params['wi_up'])
    hidden = ops.drop(hidden, self.dropout, self.dropout_mask)
    return ops.dot(hidden, params['wo'])

  def routing_features(self, params, total):
    return {'down': params['down'].astype(jnp.float32)}
