"""The standing committee: experts that serve all domains alike.

"The Illusion of Specialization: Unveiling the Domain-Invariant 'Standing
Committee' in Mixture-of-Experts Models", 2026, arXiv:2601.03425 (recalled): a
few routed experts hold most of the routing mass in every domain. Definitions
are ours. With p_d(e), expert e's share of the choices of domain d (K of a token
alike, domains weighing the same),

  value = sum_e min_d p_d(e)

is the mass that all domains have in common: 1 where domain makes no difference,
0 where no expert serves all. The committee are the experts, in order of their
mean share, the fewest that hold `mass` of EVERY domain: 'size' of them. Null:
documents dealt to the domains anew, as many each; an even load would have
'size_even'. A small committee alone may be an uneven load: compare with its
null. Undefined for one domain. Intervals: documents of a domain drawn again.
"""

import dataclasses
import math

import numpy as np

from moe_jax import registry
from moe_jax.analysis.metrics import base


@registry.register
@dataclasses.dataclass(frozen=True)
class Committee(base.Metric):
  """mass: share of each domain's choices that the committee holds."""

  mass: float = 0.5
  draws: int = 200
  seed: int = 0

  def start(self, schema):
    shape = len(schema.documents), len(schema.layers), base.width(schema)
    return np.zeros(shape, np.int64)

  def add(self, state, part):
    return base.tally(state, part.document, part.expert)

  def result(self, state, schema):
    """By layer; 'members' [M][size] of experts, the largest share first."""
    domain_D = np.array([d for d, _ in schema.documents])
    if len(np.unique(domain_D)) < 2:
      return {'undefined': 'the text is of one domain'}
    members = self._members(_shares(state, domain_D))
    rng = np.random.default_rng(self.seed)
    deal = lambda: _shares(state, rng.permutation(domain_D))
    dealt = [deal() for _ in range(self.draws)]
    again = [
      _shares(state * times_D[:, None, None], domain_D)
      for times_D in base.resample(len(state), self.draws, self.seed, domain_D)
    ]
    numbers = lambda share: (_common(share), [*map(len, self._members(share))])
    null, null_size = zip(*map(numbers, dealt), strict=True)
    drawn, drawn_size = zip(*map(numbers, again), strict=True)
    return {
      'value': _common(_shares(state, domain_D)),
      'null': np.mean(null, 0),
      **base.interval(null, 'null_'),
      **base.interval(drawn),
      'size_value': [len(m) for m in members],
      'size_null': np.mean(null_size, 0),
      **base.interval(null_size, 'size_null_'),
      **base.interval(drawn_size, 'size_'),
      'size_even': [math.ceil(self.mass * E) for E in schema.experts],
      'members': members,
    }

  def _members(self, share_DME):
    """[M][size]: experts of each layer's committee."""
    best_ME = np.argsort(-share_DME.mean(0), -1, kind='stable')
    held_DME = np.take_along_axis(share_DME, best_ME[None], -1).cumsum(-1)
    size_M = (held_DME.min(0) < self.mass - 1e-9).sum(-1) + 1
    return [best_E[:n] for best_E, n in zip(best_ME, size_M, strict=True)]


def _shares(count_DME, domain_D):
  """f64 [domains, M, E], of documents' counts."""
  count = np.array(
    [count_DME[domain_D == d].sum(0) for d in np.unique(domain_D)]
  )
  return count / np.maximum(count.sum(-1, keepdims=True), 1)


def _common(share_DME):
  return share_DME.min(0).sum(-1)
