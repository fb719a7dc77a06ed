"""Load patterns: experts' loads by domain, over what a balanced layer has.

DeepSeek-AI, "DeepSeek-V3 Technical Report", 2024, arXiv:2412.19437, section
4.5.3 and figure 9, which sets a model with an auxiliary loss beside one
balanced without (Lean Wang et al., "Auxiliary-Loss-Free Load Balancing
Strategy for Mixture-of-Experts", 2024, arXiv:2408.15664):

  relative[l][D][i] = E * N_{i, D} / sum_j N_{j, D}

The one number is the total variation of a domain's load from even loads, its
mean over domains: unlike `domain_specialisation` it also grows with a load that
is uneven in all domains alike, which is what the null shows that shuffles
documents over domains (`_domains`): it has the loads of all, without their
domains. `pooled_value` is that of the whole text, `max_violation` its largest
load over the mean less 1 (MaxVio, global), and by domain. All K choices count,
zero-computation experts are experts. Undefined for one domain.
"""

import dataclasses

import numpy as np

from moe_jax import registry
from moe_jax.analysis import counts
from moe_jax.analysis.metrics import _domains


@registry.register
@dataclasses.dataclass(frozen=True)
class LoadPatterns(_domains.DomainMetric):
  """Results: as the base says, `p`, `excess`, by domain, and the above."""

  def distance(self, share_WGME, even_ME):
    return counts.variation(share_WGME, even_ME)

  def most(self, G):
    return 1.0

  def further(self, edges_GME, tokens_G, even_ME):
    all_ME = counts.shares(edges_GME.sum(0))
    # An expert that a smaller layer lacks has 0, not 0 / 0.
    over = lambda share: share / np.where(even_ME > 0, even_ME, 1)
    relative_GME = over(counts.shares(edges_GME))
    return {
      'pooled_value': counts.variation(all_ME, even_ME),
      'max_violation': over(all_ME).max(-1) - 1,
      'by_domain_max_violation': (relative_GME.max(-1) - 1).T,
      'relative': relative_GME.swapaxes(0, 1),
    }
