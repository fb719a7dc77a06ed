"""Device-level balance: the load of groups of experts, not of each of them.

Damai Dai et al., "DeepSeekMoE: Towards Ultimate Expert Specialization in
Mixture-of-Experts Language Models", 2024, arXiv:2401.06066, section 3.3,
equations 15 to 17 (weight 0.05 beside 0.003 for the experts); DeepSeek-V2
(2024, arXiv:2405.04434, section 2.2.3).

Sum over D groups of f'_d P'_d: f'_d the mean over the group's experts of f_i =
E / (K T) times the assignments to i, P'_d the sum of their mean affinities. 1
for balanced routing. The groups are consecutive experts; their number belongs
to the method and does not follow the mesh. With a group for every expert this
is `switch_loss(count='all')`, with one group it is the sum of the affinities.
"""

import dataclasses

import jax.numpy as jnp

from moe_jax import registry
from moe_jax.balancing import base


@registry.register
@dataclasses.dataclass(frozen=True)
class DeviceLoss(base.Balance):
  """devices: D, divides E. weight: of the loss. scope: segments of the sums."""

  devices: int = 8
  weight: float = 0.05
  scope: str = 'sequence'

  def stats(self, sums):
    r = sums.routing
    base.check_devices('device_loss', self.devices, r.num_experts)
    return {
      'load': sums.load(chosen=True),
      'prob': sums.tokens(base.affinities(r, 'device_loss')),
      'tokens': sums.count(),
    }

  def loss(self, stats, state, router):
    load_SE = stats['load'].astype(jnp.float32)
    S, D = load_SE.shape[0], self.devices
    f_SE = load_SE / jnp.maximum(load_SE.sum(-1, keepdims=True), 1)
    P_SE = stats['prob'] / jnp.maximum(stats['tokens'], 1)[:, None]
    of_device = lambda v_SE: v_SE.reshape(S, D, -1).sum(-1)
    return D * (of_device(f_SE) * of_device(P_SE)).sum(-1)
