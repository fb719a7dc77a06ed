"""Entropy of smooth selectors, to be made small: `dselect_k` and `comet`.

Hussein Hazimeh et al., "DSelect-k: Differentiable Selection in the Mixture of
Experts with Applications to Multi-Task Learning", NeurIPS 2021,
arXiv:2106.03760, section 3 (DSelect-k), and Ibrahim et al. 2023,
arXiv:2306.02824, section 3 (COMET): -r log(r + 1e-6), summed over experts and
selectors or trees, mean over tokens. It does not balance; it drives smooth
steps to 0 or 1, so that few experts are used. The papers searched its weight
from 0.05 to 10.

`reach` is the factor of DSelect-k's second term, for E that is no power of two:
the sum over selectors of 1 / (1e-6 + the mass on numbers that an expert has).
"""

import dataclasses

import jax.numpy as jnp

from moe_jax import registry
from moe_jax.balancing import base
from moe_jax.errors import UserError


@registry.register
@dataclasses.dataclass(frozen=True)
class SelectorLoss(base.Balance):
  """weight: of both terms. reach: of the second, beside the first's 1."""

  weight: float = 0.05
  reach: float = 0.0
  scope: str = dataclasses.field(default='group', init=False)

  def check(self):
    if self.reach < 0:
      raise UserError(f'selector_loss: reach={self.reach} is negative')

  def stats(self, sums):
    terms = sums.routing.terms
    names = ('selector_entropy', 'selector_reach')[: 2 if self.reach else 1]
    for name in names:
      if name not in terms:
        valid = 'dselect_k' if self.reach else 'dselect_k, comet'
        raise UserError(f'selector_loss: no {name}; it goes with {valid}')
    return {k: sums.tokens(terms[k]) for k in names} | {'tokens': sums.count()}

  def loss(self, stats, state, router):
    total = stats['selector_entropy']
    if self.reach:
      total += self.reach * stats['selector_reach']
    return total / jnp.maximum(stats['tokens'], 1)
