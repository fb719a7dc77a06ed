"""The soup: the average of the parameters of models with one ancestor.

Mitchell Wortsman et al., "Model soups: averaging weights of multiple fine-tuned
models improves accuracy without increasing inference time", ICML 2022,
arXiv:2203.05482 (recalled), the uniform soup; as one of the ways to merge
branches in Branch-Train-Merge (Margaret Li et al. 2022, arXiv:2208.03306),
whose main one is an ensemble and no average.

Sums are of float64, so that equal parts give themselves. The balancing rules'
states are averaged, too; the optimizer starts anew. Models without an ancestor
in common have their units in other places: their average is none of either.
"""

import dataclasses

from moe_jax import registry
from moe_jax.conversion.methods import base
from moe_jax.errors import UserError


@registry.register
@dataclasses.dataclass(frozen=True)
class Soup(base.Method):
  """weights: of the models, not below 0; () is equal ones."""

  weights: tuple[float, ...] = ()
  sources, related = (1, None), True

  def __post_init__(self):
    if self.weights and not (min(self.weights) >= 0 < sum(self.weights)):
      raise UserError(f'soup: weights={self.weights}; valid: some above 0')

  def __call__(self, key, *models):
    base.check_alike(models)
    if self.weights and len(self.weights) != len(models):
      raise UserError(
        f'soup: weights={self.weights} are {len(self.weights)}, the models '
        f'{len(models)}'
      )
    return base.average(models, self.weights or None)
