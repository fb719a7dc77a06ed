"""Two-layer expert: act(x W_i) W_o.

The FFN of Vaswani et al. 2017, arXiv:1706.03762, section 3.3 (ReLU), as expert
in Switch Transformer (Fedus et al. 2021, arXiv:2101.03961, section 2.1). No
biases unless asked for, as in T5.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.experts import base


@registry.register
@dataclasses.dataclass(frozen=True)
class Mlp(base.Experts):
  """activation: 'relu', 'gelu', ... bias: additive biases, initially 0."""

  d_ff: int
  activation: str = 'relu'
  bias: bool = False
  init_scale: float = 1.0

  def __post_init__(self):
    base.check_width(self.d_ff)
    base.activation(self.activation)

  @property
  def axes(self):
    axes = {'wi': ('expert', 'embed', 'mlp'), 'wo': ('expert', 'mlp', 'embed')}
    if self.bias:
      axes |= {'bi': ('expert', 'mlp'), 'bo': ('expert', None)}
    return axes

  def init(self, key, E, D):
    key_i, key_o = jax.random.split(key)
    params = {
      'wi': base.init_kernel(key_i, E, D, self.d_ff, self.init_scale),
      'wo': base.init_kernel(key_o, E, self.d_ff, D, self.init_scale),
    }
    if self.bias:
      params['bi'] = jnp.zeros((E, self.d_ff), jnp.float32)
      params['bo'] = jnp.zeros((E, D), jnp.float32)
    return params

  def __call__(self, params, rows, ops):
    hidden = ops.dot(rows, params['wi'])
    if self.bias:
      hidden += ops.spread(params['bi'])
    out = ops.dot(base.activation(self.activation)(hidden), params['wo'])
    return out + ops.once(params['bo']) if self.bias else out
