"""Loss-free balancing: a bias on selection that follows the load.

Lean Wang et al., "Auxiliary-Loss-Free Load Balancing Strategy for
Mixture-of-Experts", 2024, arXiv:2408.15664, section 3, algorithm 1; used by
DeepSeek-V3 (2024, arXiv:2412.19437, section 2.1.2).

After each optimizer step the bias of an expert with less than the mean load
rises by `rate`, of one with more falls. It moves the selection alone, never a
combine weight, and has no gradient. Counts are exact int32 sums over the
whole batch and all micro-batches: in low precision the sign flips.

The paper's variant for softmax gates is proportional to the error. It prints
the error as a count; here it is in units of the mean load, so that the rate
does not depend on the batch. Centred, the changes add up to 0 (torchtitan):
selection is the same, since it ignores what all experts share.
"""

import dataclasses

import jax.numpy as jnp

from moe_jax import registry
from moe_jax.balancing import base
from moe_jax.errors import UserError

UPDATES = ('sign', 'proportional')


@registry.register
@dataclasses.dataclass(frozen=True)
class LossFreeBias(base.Balance):
  """The bias and how it changes.

  Attributes:
    rate: step of the bias in units of the affinity (paper: 0.001).
    update_by: the 'sign' of the load's error, or 'proportional' to it.
    centered: less the mean of the changes.
  """

  rate: float = 0.001
  update_by: str = 'sign'
  centered: bool = False
  weight: float = dataclasses.field(default=0.0, init=False)
  scope: str = dataclasses.field(default='global', init=False)

  def check(self):
    if not self.rate >= 0:
      raise UserError(f'loss_free_bias: rate={self.rate} must be 0 or above')
    if self.update_by not in UPDATES:
      raise UserError(
        f'loss_free_bias: update_by={self.update_by!r}; valid: '
        f'{", ".join(UPDATES)}'
      )

  def stats(self, sums):
    return {'load': sums.load()}

  def init(self, E):
    return jnp.zeros(E, jnp.float32)

  def selection_bias(self, state):
    return state

  def update(self, state, stats):
    load = stats['load']
    E, total = load.shape[-1], load.sum(-1, keepdims=True)
    # mean - load by whole numbers and a rest: in float32 a mean of millions
    # would be rounded, and E * load does not fit int32.
    error = (total // E - load).astype(jnp.float32) + total % E / E
    change = error * E / jnp.maximum(total, 1)
    if self.update_by == 'sign':
      change = jnp.sign(error)
    if self.centered:
      change -= change.mean(-1, keepdims=True)
    return state + self.rate * change
