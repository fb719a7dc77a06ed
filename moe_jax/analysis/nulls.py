"""Nulls: what routers that know nothing would score, and by how much it varies.

Letters: n tokens, R tokens of a sample, M layers, K choices, E experts, V ids.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from scipy import special

from moe_jax.analysis.metrics import base

_STEP = 1 << 16  # tokens drawn at a time


@dataclasses.dataclass
class Sample:
  """Tokens' values, each token as likely as any other, of a stream.

  The same ones however the stream is cut: each token draws a number, the
  smallest stay.

  Attributes:
    size: R, the most that stay.
    rng: their numbers.
    key_R: of those that stay.
    value_R: their values, [R, ...]; None before the first.
  """

  size: int
  rng: np.random.Generator
  key_R: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
  value_R: np.ndarray | None = None

  def add(self, value_n: np.ndarray) -> None:
    """Offers a part's tokens."""
    key_n = self.rng.random(len(value_n))
    if len(self.key_R) == self.size:
      low_n = key_n < self.key_R[-1]
      key_n, value_n = key_n[low_n], value_n[low_n]
    before = value_n[:0] if self.value_R is None else self.value_R
    key_n = np.concatenate([self.key_R, key_n])
    stay = np.argsort(key_n)[: self.size]
    self.key_R = key_n[stay]
    self.value_R = np.concatenate([before, value_n])[stay]


def tables(
  expert_RMK: np.ndarray, seen_V: np.ndarray, E: int, draws: int, seed: int
) -> Iterator[np.ndarray]:
  """int32 [V, M, E], `draws` times: ids' choices where none depends on the id.

  Every occurrence of an id takes the choices of a token drawn from a sample, of
  all layers at once: loads are kept, and which experts go together.

  Args:
    expert_RMK: the sample; -1 is nobody.
    seen_V: occurrences of each id.
    E: experts.
    draws: tables.
    seed: of `base.generator`.
  """
  rng = base.generator(seed, 1)
  end_V = np.cumsum(seen_V)
  for _ in range(draws):
    count = np.zeros((len(seen_V), expert_RMK.shape[1], E), np.int32)
    for start in range(0, end_V[-1], _STEP):
      at_n = np.arange(start, min(start + _STEP, end_V[-1]))
      row_n = np.searchsorted(end_V, at_n, side='right')
      drawn_n = rng.integers(len(expert_RMK), size=len(row_n))
      base.tally(count, row_n, expert_RMK[drawn_n])
    yield count


def level(draws: Sequence[Any], prefix: str = '') -> dict[str, np.ndarray]:
  """{'null', 'null_low', 'null_high'}: the mean, and where 95 % is.

  A few draws of a sum over many tokens: where one more normal number is to be
  expected, by Student's distribution.

  Args:
    draws: at least two.
    prefix: of the names.
  """
  draws = np.asarray(draws, np.float64)
  n = len(draws)
  reach = special.stdtrit(n - 1, 0.975) * draws.std(0, ddof=1)
  reach *= np.sqrt(1 + 1 / n)
  mean = draws.mean(0)
  return {
    f'{prefix}null': mean,
    f'{prefix}null_low': mean - reach,
    f'{prefix}null_high': mean + reach,
  }


def excess(value: Any, null: Any, ceiling: Any = 1.0) -> np.ndarray:
  """(value - null) / (ceiling - null): 0 by chance, 1 at the most."""
  value, null = np.asarray(value, np.float64), np.asarray(null, np.float64)
  room = ceiling - null
  return np.where(room > 0, value - null, np.nan) / np.where(room > 0, room, 1)
