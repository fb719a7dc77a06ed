"""Domain specialisation: how far domains' loads are from what all have.

Niklas Muennighoff et al., "OLMoE: Open Mixture-of-Experts Language Models",
2024, arXiv:2409.02060, section 5.3, and Albert Q. Jiang et al., "Mixtral of
Experts", 2024, arXiv:2401.04088, section 5:

  shares[l][D][i] = N_{i, D} / N_D

the share of domain D's tokens that choose expert i, all K choices counted:
shares of a domain sum to K, chance is K / E or, where loads are uneven, what
all domains have together.

The one number is the total variation of a domain's load (its shares, made to
sum to 1) from the mean of all domains' loads, each counting alike; its mean
over domains. 0 where domains do not matter; a router that gives each of G
domains its own experts has 1 - 1 / G. The null, documents shuffled over
domains, is in `_domains`; `p` the share of shuffles that give as much.
Undefined for one domain.
"""

import dataclasses

from moe_jax import registry
from moe_jax.analysis import counts
from moe_jax.analysis.metrics import _domains


@registry.register
@dataclasses.dataclass(frozen=True)
class DomainSpecialisation(_domains.DomainMetric):
  """Results: as the base says, `p`, `excess`, by domain, and `shares`."""

  def distance(self, share_WGME, even_ME):
    mean_W1ME = share_WGME.mean(1, keepdims=True)
    return counts.variation(share_WGME, mean_W1ME)

  def most(self, G):
    return 1 - 1 / G

  def further(self, edges_GME, tokens_G, even_ME):
    return {'shares': (edges_GME / tokens_G[:, None, None]).swapaxes(0, 1)}
