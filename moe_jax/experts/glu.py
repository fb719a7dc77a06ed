"""Gated expert: (act(x W_g) * x W_u) W_o.

Shazeer, "GLU Variants Improve Transformer", 2020, arXiv:2002.05202, equation
6: GEGLU with activation='gelu' (ST-MoE), SwiGLU with 'silu' (Mixtral, OLMoE,
DeepSeek). No biases, as in the code of all of them.
"""

import dataclasses

import jax

from moe_jax import registry
from moe_jax.experts import base


@registry.register
@dataclasses.dataclass(frozen=True)
class Glu(base.Experts):
  """d_ff: width of gate and of up projection each. activation: the gate's."""

  d_ff: int
  activation: str = 'silu'
  init_scale: float = 1.0

  def __post_init__(self):
    base.check_width(self.d_ff)
    base.activation(self.activation)

  @property
  def axes(self):
    return {
      'wi_gate': ('expert', 'embed', 'mlp'),
      'wi_up': ('expert', 'embed', 'mlp'),
      'wo': ('expert', 'mlp', 'embed'),
    }

  def init(self, key, E, D):
    key_g, key_u, key_o = jax.random.split(key, 3)
    return {
      'wi_gate': base.init_kernel(key_g, E, D, self.d_ff, self.init_scale),
      'wi_up': base.init_kernel(key_u, E, D, self.d_ff, self.init_scale),
      'wo': base.init_kernel(key_o, E, self.d_ff, D, self.init_scale),
    }

  def __call__(self, params, rows, ops):
    gate = base.activation(self.activation)(ops.dot(rows, params['wi_gate']))
    return ops.dot(gate * ops.dot(rows, params['wi_up']), params['wo'])
