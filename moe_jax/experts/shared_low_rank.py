"""Experts of one shared FFN and low-rank parts of their own: W x + B_e A_e x.

Hao Gu et al., "Delta Decompression for MoE-based LLMs Compression", ICML 2025,
arXiv:2502.17298 (D2-MoE): a weight common to the experts and a low-rank
difference for each. The difference starts at zero, as in LoRA (Edward J. Hu et
al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022,
arXiv:2106.09685, section 4.1): A is drawn, B is 0, without a scale alpha / r.
Recalled, not read.

Differs from D2-MoE, which splits the experts of a trained model (weights of
Fisher information, singular values): here both parts are trained from the
start, of a two-layer FFN. All experts start equal, so that routers have no
gradient at the first step. Do not use it where experts should differ by more
than `rank`.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.errors import UserError
from moe_jax.experts import base


@registry.register
@dataclasses.dataclass(frozen=True)
class SharedLowRank(base.Experts):
  """A two-layer FFN whose matrices all experts share, but for their ranks.

  Attributes:
    d_ff: hidden width F.
    rank: of each expert's difference, in both layers.
    activation, bias, dropout, dropout_mask, init_scale: as in `mlp`; biases are
      shared.
  """

  d_ff: int
  rank: int = 8
  activation: str = 'relu'
  bias: bool = False
  dropout: float = 0.0
  dropout_mask: str = 'row'
  init_scale: float = 1.0

  def __post_init__(self):
    base.check(self.d_ff, self.activation, self.dropout, self.dropout_mask)
    if not isinstance(self.rank, int) or self.rank < 1:
      what = f'shared_low_rank: rank={self.rank!r}'
      raise UserError(f'{what} must be a whole number from 1')

  @property
  def axes(self):
    axes = {
      'wi': ('embed', 'mlp'),
      'wi_a': ('expert', 'embed', None),
      'wi_b': ('expert', None, 'mlp'),
      'wo': ('mlp', 'embed'),
      'wo_a': ('expert', 'mlp', None),
      'wo_b': ('expert', None, 'embed'),
    }
    if self.bias:
      axes |= {'bi': ('mlp',), 'bo': (None,)}
    return axes

  @property
  def kept(self):
    return 3 + (self.activation in base.SMOOTH)

  def init(self, key, E, D):
    keys, F, s = jax.random.split(key, 4), self.d_ff, self.init_scale
    params = {
      'wi': base.init_kernel(keys[0], 1, D, F, s)[0],
      'wi_a': base.init_kernel(keys[1], E, D, self.rank, s),
      'wi_b': jnp.zeros((E, self.rank, F), jnp.float32),
      'wo': base.init_kernel(keys[2], 1, F, D, s)[0],
      'wo_a': base.init_kernel(keys[3], E, F, self.rank, s),
      'wo_b': jnp.zeros((E, self.rank, D), jnp.float32),
    }
    if self.bias:
      params['bi'] = jnp.zeros(F, jnp.float32)
      params['bo'] = jnp.zeros(D, jnp.float32)
    return params

  def __call__(self, params, rows, ops):
    def layer(x, w):
      own = ops.dot(ops.dot(x, params[f'{w}_a']), params[f'{w}_b'])
      return ops.dot(x, params[w]) + own

    hidden = layer(rows, 'wi')
    if self.bias:
      hidden += ops.spread(params['bi'])
    hidden = base.activation(self.activation)(hidden)
    hidden = ops.drop(hidden, self.dropout, self.dropout_mask)
    out = layer(hidden, 'wo')
    return out + ops.once(params['bo']) if self.bias else out
