"""Mutual-information loss: experts even over all tokens, each token sure.

Yikang Shen et al., "ModuleFormer: Modularity Emerges from Mixture-of-Experts",
2023, arXiv:2306.04640; after Mod-Squad (Zitian Chen et al., "Mod-Squad:
Designing Mixture of Experts As Modular Multi-Task Learners", 2022,
arXiv:2212.08066). Weight 0.001.

The negative mutual information of token and expert in nats: the mean entropy of
the tokens' affinities less the entropy of their mean. 0 where all tokens agree,
-ln E at its best. The affinities alone count, not the load. The mean is over
the segment: larger ones leave room for sequences that use few experts.
"""

import dataclasses

import jax.numpy as jnp

from moe_jax import registry
from moe_jax.balancing import base


@registry.register
@dataclasses.dataclass(frozen=True)
class MutualInformation(base.Balance):
  """weight: of the loss. scope: segments of the sums."""

  weight: float = 0.001
  scope: str = 'global'

  def stats(self, sums):
    p = base.affinities(sums.routing, 'mutual_information')
    return {
      'entropy': sums.tokens(base.entropy(p)),
      'prob': sums.tokens(p),
      'tokens': sums.count(),
    }

  def loss(self, stats, state, router):
    tokens_S = jnp.maximum(stats['tokens'], 1)
    mean_SE = stats['prob'] / tokens_S[:, None]
    return stats['entropy'] / tokens_S - base.entropy(mean_SE)
