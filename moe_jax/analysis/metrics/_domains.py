"""What metrics of domains share: documents' loads, shuffled and drawn again.

The null shuffles documents over domains, each domain keeping its number of
them, and never tokens: tokens of a document go where its subject sends them, so
that two halves of one domain differ by far more than random tokens would. A
null of shuffled tokens is too narrow by the root of that clustering, 17 times
in a text of long documents, and finds domain experts in any router. Domains
that matter spread documents, and the null: `excess` is then too small, never
too large.

Of a domain with one document nothing can be told: intervals are then nan, and
where all have one the null is the value.
"""

import abc
import dataclasses

import numpy as np

from moe_jax.analysis import counts, nulls
from moe_jax.analysis.metrics import base


@dataclasses.dataclass(frozen=True)
class DomainMetric(base.Metric):
  """A mean over domains, each counting alike, of a distance of its load.

  Attributes:
    draws: of the null and of the bootstrap.
    seed: of both.
  """

  draws: int = 200
  seed: int = 0

  @abc.abstractmethod
  def distance(self, share_WGME: np.ndarray, even_ME: np.ndarray) -> np.ndarray:
    """f64 [W, G, M], of each of G domains.

    Args:
      share_WGME: of each domain's edges, W times anew.
      even_ME: shares of a balanced layer.
    """

  @abc.abstractmethod
  def most(self, G: int) -> float:
    """The largest mean of distances of G domains."""

  def further(self, edges_GME, tokens_G, even_ME):
    """More results, from sums over domains that have a token."""
    return {}

  def start(self, schema):
    D, M = len(schema.documents), len(schema.layers)
    count_DME = np.zeros((D, M, base.width(schema)), np.int32)
    return count_DME, np.zeros(D, np.int64)

  def add(self, state, part):
    count_DME, tokens_D = state
    base.tally(count_DME, part.document, part.expert)
    tokens_D += np.bincount(part.document, minlength=len(tokens_D))
    return state

  def result(self, state, schema):
    real_D = state[1] > 0
    count_DME, tokens_D = state[0][real_D], state[1][real_D]
    domain_D = np.array([d for d, _ in schema.documents])[real_D]
    found, domain_D = np.unique(domain_D, return_inverse=True)
    if len(found) < 2:
      return {'undefined': f'a text of {len(found)} domains'}
    even_ME, rng = base.even(schema), base.generator(self.seed)
    own_GD = domain_D == np.arange(len(found))[:, None]

    def distance(weight_WGD):
      sums = counts.grouped(count_DME, weight_WGD)
      return self.distance(counts.shares(sums), even_ME)

    value_GM = distance(own_GD[None])[0]
    shuffles = [
      own_GD[:, rng.permutation(len(tokens_D))] for _ in range(self.draws)
    ]
    null_WGM = distance(np.stack(shuffles))
    times = base.resample(len(tokens_D), self.draws, self.seed, domain_D)
    again_WGM = distance(np.stack([own_GD * t for t in times]))
    # What is drawn again is further from all else, by about the null: the
    # spread is what is of use, not the place.
    again_WGM += value_GM - again_WGM.mean(0)
    if own_GD.sum(-1).min() < 2:
      again_WGM[:] = np.nan
    value_M, null_WM = value_GM.mean(0), null_WGM.mean(1)
    as_high_M = (null_WM >= value_M - 1e-12).sum(0)
    edges_GME = counts.grouped(count_DME, own_GD[None])[0]
    return {
      'domains': [schema.domains[i] for i in found],
      'value': value_M,
      'null': null_WM.mean(0),
      'p': (1 + as_high_M) / (1 + self.draws),
      'excess': nulls.excess(value_M, null_WM.mean(0), self.most(len(found))),
      **base.interval(null_WM, 'null_'),
      **base.interval(again_WGM.mean(1)),
      'by_domain_value': value_GM.T,
      'by_domain_null': null_WGM.mean(0).T,
      **self.further(edges_GME, own_GD @ tokens_D, even_ME),
    }
