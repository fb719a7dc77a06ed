"""Gated expert: (act(x W_g) * x W_u) W_o.

Noam Shazeer, "GLU Variants Improve Transformer", 2020, arXiv:2002.05202,
equation 6: GEGLU with activation='gelu' (ST-MoE), SwiGLU with 'silu' (Mixtral,
OLMoE, DeepSeek). No biases, as in the code of all of them, but for ST-MoE's
bias on the gated product (Zoph et al. 2022, arXiv:2202.08906, appendix C: the
multiplicative one helped).
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.errors import UserError
from moe_jax.experts import base

BIASES = ('none', 'multiplicative', 'additive')


@registry.register
@dataclasses.dataclass(frozen=True)
class Glu(base.Experts):
  """A gated expert.

  Attributes:
    d_ff: width of gate and of up projection each.
    activation: the gate's.
    bias: on the gated product: 'multiplicative', initially 1, or 'additive',
      initially 0.
    dropout, dropout_mask: as in `mlp`, on the gated product.
    init_scale: variance factor of the kernels.
  """

  d_ff: int
  activation: str = 'silu'
  bias: str = 'none'
  dropout: float = 0.0
  dropout_mask: str = 'row'
  init_scale: float = 1.0

  made = 2

  def __post_init__(self):
    base.check(self.d_ff, self.activation, self.dropout, self.dropout_mask)
    if self.bias not in BIASES:
      raise UserError(f'glu: bias={self.bias!r}; valid: {", ".join(BIASES)}')

  @property
  def axes(self):
    axes = {
      'wi_gate': ('expert', 'embed', 'mlp'),
      'wi_up': ('expert', 'embed', 'mlp'),
      'wo': ('expert', 'mlp', 'embed'),
    }
    return axes if self.bias == 'none' else axes | {'bias': ('expert', 'mlp')}

  @property
  def kept(self):
    gain = self.bias == 'multiplicative'
    return 4 + (self.activation in base.SMOOTH) + gain

  def init(self, key, E, D):
    key_g, key_u, key_o = jax.random.split(key, 3)
    params = {
      'wi_gate': base.init_kernel(key_g, E, D, self.d_ff, self.init_scale),
      'wi_up': base.init_kernel(key_u, E, D, self.d_ff, self.init_scale),
      'wo': base.init_kernel(key_o, E, self.d_ff, D, self.init_scale),
    }
    if self.bias != 'none':
      start = 1.0 if self.bias == 'multiplicative' else 0.0
      params['bias'] = jnp.full((E, self.d_ff), start, jnp.float32)
    return params

  def __call__(self, params, rows, ops):
    gate = base.activation(self.activation)(ops.dot(rows, params['wi_gate']))
    hidden = gate * ops.dot(rows, params['wi_up'])
    if self.bias == 'multiplicative':
      hidden *= ops.spread(params['bias'])
    elif self.bias == 'additive':
      hidden += ops.spread(params['bias'])
    hidden = ops.drop(hidden, self.dropout, self.dropout_mask)
    return ops.dot(hidden, params['wo'])
