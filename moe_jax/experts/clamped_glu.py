"""Clamped gated expert of gpt-oss: (u + 1) * g * sigmoid(alpha * g), clamped.

OpenAI, "gpt-oss-120b & gpt-oss-20b Model Card", 2025, arXiv:2508.10925, section
2.2 (a SwiGLU with clamping and a residual connection), as in the released code:
g = min(x W_g + b_g, limit), u = clip(x W_u + b_u, -limit, limit), and biases
everywhere. Checkpoints hold gate and up columns in turn; here they are apart.
The gate is clamped from above alone.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.errors import UserError
from moe_jax.experts import base


@registry.register
@dataclasses.dataclass(frozen=True)
class ClampedGlu(base.Experts):
  """A gated expert with clamps and biases.

  Attributes:
    d_ff: width of gate and of up projection each.
    alpha: slope of the sigmoid (1.702: nearly a gelu).
    limit: of the clamps.
    dropout, dropout_mask: as in `mlp`, on the gated product.
    init_scale: variance factor of the kernels.
  """

  d_ff: int
  alpha: float = 1.702
  limit: float = 7.0
  dropout: float = 0.0
  dropout_mask: str = 'row'
  init_scale: float = 1.0

  kept, made = 5, 2

  def __post_init__(self):
    base.check(self.d_ff, 'silu', self.dropout, self.dropout_mask)
    if not self.limit > 0:
      raise UserError(f'clamped_glu: limit={self.limit} must be positive')

  @property
  def axes(self):
    return {
      'wi_gate': ('expert', 'embed', 'mlp'),
      'wi_up': ('expert', 'embed', 'mlp'),
      'wo': ('expert', 'mlp', 'embed'),
      'bi_gate': ('expert', 'mlp'),
      'bi_up': ('expert', 'mlp'),
      'bo': ('expert', None),
    }

  def init(self, key, E, D):
    key_g, key_u, key_o = jax.random.split(key, 3)
    return {
      'wi_gate': base.init_kernel(key_g, E, D, self.d_ff, self.init_scale),
      'wi_up': base.init_kernel(key_u, E, D, self.d_ff, self.init_scale),
      'wo': base.init_kernel(key_o, E, self.d_ff, D, self.init_scale),
      'bi_gate': jnp.zeros((E, self.d_ff), jnp.float32),
      'bi_up': jnp.zeros((E, self.d_ff), jnp.float32),
      'bo': jnp.zeros((E, D), jnp.float32),
    }

  def __call__(self, params, rows, ops):
    layer = lambda name: (
      ops.dot(rows, params[f'wi_{name}']) + ops.spread(params[f'bi_{name}'])
    )
    gate = jnp.minimum(layer('gate'), self.limit)
    up = jnp.clip(layer('up'), -self.limit, self.limit)
    hidden = (up + 1) * gate * jax.nn.sigmoid(self.alpha * gate)
    hidden = ops.drop(hidden, self.dropout, self.dropout_mask)
    return ops.dot(hidden, params['wo']) + ops.once(params['bo'])
