"""Loss-free balancing: a bias on selection that follows the load.

Wang et al., "Auxiliary-Loss-Free Load Balancing Strategy for
Mixture-of-Experts", 2024, arXiv:2408.15664, section 3, algorithm 1; used by
DeepSeek-V3 (2024, arXiv:2412.19437, section 2.1.2).

After each optimizer step the bias of an expert with less than the mean load
rises by `rate`, of one with more falls. It moves the selection alone, never a
combine weight, and has no gradient. Counts are exact int32 sums over the
whole batch and all micro-batches: in low precision the sign flips.
"""

import dataclasses

import jax.numpy as jnp

from moe_jax import registry
from moe_jax.balancing import base


@registry.register
@dataclasses.dataclass(frozen=True)
class LossFreeBias(base.Balance):
  """rate: step of the bias in units of the affinity (paper: 0.001)."""

  rate: float = 0.001
  weight: float = dataclasses.field(default=0.0, init=False)
  scope: str = dataclasses.field(default='global', init=False)

  def stats(self, sums):
    return {'load': sums.load()}

  def init(self, E):
    return jnp.zeros(E, jnp.float32)

  def selection_bias(self, state):
    return state

  def update(self, state, stats):
    load = stats['load']
    E = load.shape[-1]
    # sign(mean - load) without the rounding of a mean.
    error = load.sum(-1, keepdims=True) - load * E
    return state + self.rate * jnp.sign(error).astype(jnp.float32)
