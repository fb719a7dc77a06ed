"""Two-layer expert: act(x W_i) W_o.

Ashish Vaswani et al., "Attention Is All You Need", NeurIPS 2017,
arXiv:1706.03762, section 3.3 (ReLU); as expert in Switch Transformer (Fedus et
al. 2021, arXiv:2101.03961, section 2.1). No biases unless asked for, as in T5.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.experts import base


@registry.register
@dataclasses.dataclass(frozen=True)
class Mlp(base.Experts):
  """A ReLU expert, or with another activation.

  Attributes:
    d_ff: hidden width F.
    activation: 'relu', 'gelu', ...
    bias: additive biases, initially 0.
    dropout: rate on the hidden activations (Switch, section 2.4: 0.4 where the
      rest of the model has 0.1).
    dropout_mask: one of base.MASKS.
    init_scale: variance factor of the kernels.
  """

  d_ff: int
  activation: str = 'relu'
  bias: bool = False
  dropout: float = 0.0
  dropout_mask: str = 'row'
  init_scale: float = 1.0

  def __post_init__(self):
    base.check(self.d_ff, self.activation, self.dropout, self.dropout_mask)

  @property
  def axes(self):
    axes = {'wi': ('expert', 'embed', 'mlp'), 'wo': ('expert', 'mlp', 'embed')}
    if self.bias:
      axes |= {'bi': ('expert', 'mlp'), 'bo': ('expert', None)}
    return axes

  @property
  def kept(self):
    return 2 + (self.activation in base.SMOOTH)

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

  def routing_features(self, params, total):
    """Mean and variance over the hidden units of each input's weights."""
    w_EDF = params['wi'].astype(jnp.float32)
    width = total(jnp.float32(w_EDF.shape[-1]))
    mean_ED = total(w_EDF.sum(-1)) / width
    square_ED = total(((w_EDF - mean_ED[..., None]) ** 2).sum(-1))
    return {'mean': mean_ED, 'variance': square_ED / width}

  def __call__(self, params, rows, ops):
    hidden = ops.dot(rows, params['wi'])
    if self.bias:
      hidden += ops.spread(params['bi'])
    hidden = base.activation(self.activation)(hidden)
    hidden = ops.drop(hidden, self.dropout, self.dropout_mask)
    out = ops.dot(hidden, params['wo'])
    return out + ops.once(params['bo']) if self.bias else out
