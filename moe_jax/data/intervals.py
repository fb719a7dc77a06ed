"""Ratios of sums and shares, with intervals over documents or examples."""

from typing import NamedTuple

import numpy as np
from scipy import special

from moe_jax.errors import UserError


class Estimate(NamedTuple):
  """A value and its 95 % interval."""

  value: float
  low: float
  high: float

  def named(self, key: str) -> dict[str, float]:
    """Metrics: `key`, `key`_low and `key`_high."""
    return {key: self.value, f'{key}_low': self.low, f'{key}_high': self.high}


def ratio(sum_N, size_N, domain_N=None) -> Estimate:
  """Bits per byte: a sum over a sum, with a 95 % interval over documents.

  A ratio of sums weighs documents by length. The interval says how far the
  value would move with other documents of the same kind: the linearised
  variance of a ratio (Cochran, "Sampling Techniques", 3rd ed. 1977, sections
  6.4 and 6.11) with Student's t.

  Args:
    sum_N: of each document, such as its negative log2 likelihood.
    size_N: what it is shared out over, such as bytes.
    domain_N: to pool domains, the domain of each: documents are then another
      draw from the SAME domains, whose differences add no variance; degrees of
      freedom are Satterthwaite's. Where a domain has a single document all
      count as one domain, which widens the interval.

  Returns:
    The interval is infinite for one document.

  Raises:
    ValueError: no documents, unequal lengths, or no size.
  """
  sum_N = np.asarray(sum_N, np.float64)
  size_N = np.asarray(size_N, np.float64)
  if sum_N.ndim != 1 or sum_N.shape != size_N.shape or not sum_N.size:
    raise UserError(
      f'expected sums and sizes of the same documents, one or more; got shapes '
      f'{sum_N.shape} and {size_N.shape}'
    )
  if not size_N.sum() > 0:
    raise UserError('the documents have no size')
  value = sum_N.sum() / size_N.sum()
  residual_N = (sum_N - value * size_N) / size_N.sum()
  parts = [residual_N]
  if domain_N is not None:
    _, place_N, count_D = np.unique(
      domain_N, return_inverse=True, return_counts=True
    )
    if count_D.min() > 1:
      parts = [residual_N[place_N == d] for d in range(count_D.size)]
  if sum_N.size < 2:
    return Estimate(float(value), -np.inf, np.inf)
  variance_D = np.array([p.size * p.var(ddof=1) for p in parts])
  freedom_D = np.array([p.size - 1 for p in parts])
  variance = variance_D.sum()
  if variance == 0:
    return Estimate(float(value), float(value), float(value))
  freedom = variance**2 / (variance_D**2 / freedom_D).sum()
  half = special.stdtrit(freedom, 0.975) * np.sqrt(variance)
  return Estimate(float(value), float(value - half), float(value + half))


def wilson(right: int, total: int) -> Estimate:
  """A share of independent examples with its 95 % score interval.

  Wilson, "Probable inference, the law of succession, and statistical
  inference", JASA 1927: the shares that a normal test at 5 % does not refuse.
  It stays in [0, 1], and has a width where all are right.

  Raises:
    ValueError: no examples, or more right ones than there are.
  """
  if not 0 <= right <= total or total < 1:
    raise UserError(f'expected 0 <= right={right} <= total={total}, above 0')
  share, z2 = right / total, special.ndtri(0.975) ** 2
  middle = (share + z2 / (2 * total)) / (1 + z2 / total)
  spread = share * (1 - share) / total + z2 / (4 * total**2)
  half = float(np.sqrt(z2 * spread)) / (1 + z2 / total)
  # Rounding must not leave the value, or [0, 1], outside.
  low, high = max(middle - half, 0.0), min(middle + half, 1.0)
  return Estimate(share, min(float(low), share), max(float(high), share))
