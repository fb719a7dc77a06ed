"""MoE++'s balancing loss: zero-computation experts may have more load.

Peng Jin et al., "MoE++: Accelerating Mixture-of-Experts Methods with
Zero-Computation Experts", 2024, arXiv:2410.07348, section 3.3, equation 7:
sum_e eta_e f_e P_e with eta = 1 for experts and tau for zero-computation ones,
which then get 1 / tau times the load of an expert. Here it is divided by its
value at that balance, so that this is 1: without zero-computation experts it is
the Switch loss over all choices.
"""

import dataclasses

import jax.numpy as jnp

from moe_jax import registry
from moe_jax.balancing import base
from moe_jax.errors import UserError


@registry.register
@dataclasses.dataclass(frozen=True)
class HeterogeneousLoss(base.Balance):
  """tau: as above (0.75). weight: of the loss. scope: segments of the sums."""

  tau: float = 0.75
  weight: float = 0.01
  scope: str = 'group'

  def check(self):
    if not self.tau > 0:
      raise UserError(f'heterogeneous_loss: tau={self.tau} must be positive')

  def stats(self, sums):
    r, load_SE = sums.routing, sums.load(chosen=True)
    local_E = jnp.arange(r.num_experts) >= r.num_experts - r.num_local
    eta_E = jnp.where(local_E, self.tau, 1.0)
    return {
      # The weight is on the loads: stats are all that a loss sees.
      'load': load_SE * (eta_E * (1 / eta_E).sum()),
      'edges': load_SE.sum(-1).astype(jnp.float32),
      'prob': sums.tokens(base.affinities(r, 'heterogeneous_loss')),
      'tokens': sums.count(),
    }

  def loss(self, stats, state, router):
    f_SE = stats['load'] / jnp.maximum(stats['edges'], 1)[:, None]
    P_SE = stats['prob'] / jnp.maximum(stats['tokens'], 1)[:, None]
    return (f_SE * P_SE).sum(-1)
