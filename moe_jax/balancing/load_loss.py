"""Load loss: the squared coefficient of variation of a smooth load.

Noam Shazeer et al., "Outrageously Large Neural Networks: The Sparsely-Gated
Mixture-of-Experts Layer", ICLR 2017, arXiv:1701.06538, appendix A, equations 8
to 10; V-MoE (Riquelme et al. 2021, arXiv:2106.05974, appendix A.2, weight
0.005).

Counts of assignments have no gradient. The smooth load of an expert is the sum
over tokens of the probability that it would be chosen if the router's noise
were drawn again: a router with Gaussian noise gives it as the term
'smooth_load'. 0 for balanced routing.
"""

import dataclasses

from moe_jax import registry
from moe_jax.balancing import base
from moe_jax.errors import UserError


@registry.register
@dataclasses.dataclass(frozen=True)
class LoadLoss(base.Balance):
  """weight: of the loss. scope: segments of the sums (V-MoE: the group)."""

  weight: float = 0.005
  scope: str = 'group'

  def stats(self, sums):
    terms = sums.routing.terms
    if 'smooth_load' not in terms:
      raise UserError(
        'load_loss needs a router that draws Gaussian noise, such as vmoe()'
      )
    return {'smooth_load': sums.tokens(terms['smooth_load'])}

  def loss(self, stats, state, router):
    return base.squared_cv(stats['smooth_load'])
