"""Entropy loss: the mean entropy of the tokens' affinities, to be made small.

Quzhe Huang et al., "Harder Tasks Need More Experts: Dynamic Routing in MoE
Models", ACL 2024, arXiv:2403.07652, its dynamic loss (weight 0.0001).

For top-p routing: without it the router flattens its probabilities, and more
experts reach the threshold. It does not balance: pair it with `switch_loss`. 0
where every token is sure, ln E for uniform affinities.
"""

import dataclasses

import jax.numpy as jnp

from moe_jax import registry
from moe_jax.balancing import base


@registry.register
@dataclasses.dataclass(frozen=True)
class EntropyLoss(base.Balance):
  """weight: of the loss. scope: without effect on a mean by tokens."""

  weight: float = 0.0001
  scope: str = 'group'

  def stats(self, sums):
    p = base.affinities(sums.routing, 'entropy_loss')
    return {'entropy': sums.tokens(base.entropy(p)), 'tokens': sums.count()}

  def loss(self, stats, state, router):
    return stats['entropy'] / jnp.maximum(stats['tokens'], 1)
