"""What metrics of token ids share: a table of ids by experts, and its null.

An id is the token's own, its true next one or the predicted next one. The null
gives every occurrence of an id the choices of a token drawn at random: the same
loads, sets of choices and occurrences, but a router that does not read ids.
What an expert does by document or domain stays: ids that come together, as a
domain's do, look alike to it.
"""

import abc
import dataclasses
from typing import Any

import numpy as np

from moe_jax.analysis import nulls
from moe_jax.analysis.metrics import base
from moe_jax.errors import UserError

IDS = ('token', 'next', 'predicted')


@dataclasses.dataclass(frozen=True)
class IdMetric(base.Metric):
  """A metric of how ids choose.

  Attributes:
    ids: which of IDS.
    draws: of the null, at least two.
    sample: tokens whose choices the null draws from, at most.
    seed: of the null.
  """

  ids: tuple = IDS
  draws: int = 5
  sample: int = 16_384
  seed: int = 0

  def check(self):
    if not self.ids or set(self.ids) - set(IDS):
      raise UserError(f'ids={self.ids!r}; valid: {", ".join(IDS)}')

  @abc.abstractmethod
  def statistic(
    self, count_VME: np.ndarray, seen_V: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """f64 [M] each: a number, and the most that it can be.

    Args:
      count_VME: edges of each id.
      seen_V: its occurrences.
    """

  def start(self, schema):
    shape = schema.vocab, len(schema.layers), base.width(schema)
    rng = base.generator(self.seed)
    state: dict[str, Any] = {'sample': nulls.Sample(self.sample, rng)}
    for k in self.ids:
      # Rows of ids that do not occur are never touched, and cost no memory.
      state[k] = np.zeros(shape, np.int32), np.zeros(schema.vocab, np.int64)
    return state

  def add(self, state, part):
    state['sample'].add(part.expert)
    for k in self.ids:
      count_VME, seen_V = state[k]
      id_n = getattr(part, k)
      seen_V += np.bincount(id_n[id_n >= 0], minlength=len(seen_V))
      base.tally(count_VME, id_n, part.expert)
    return state

  def result(self, state, schema):
    sample, out = state['sample'].value_R, {}
    if sample is None:
      return {'undefined': 'no token'}
    for i, k in enumerate(self.ids):
      count_VME, seen_V = state[k]
      value_M, most_M = self.statistic(count_VME, seen_V)
      size = base.width(schema), self.draws, self.seed + i
      drawn = nulls.tables(sample, seen_V, *size)
      null = nulls.level([self.statistic(c, seen_V)[0] for c in drawn], f'{k}_')
      out |= {f'{k}_value': value_M, **null}
      out[f'{k}_excess'] = nulls.excess(value_M, null[f'{k}_null'], most_M)
    return out
