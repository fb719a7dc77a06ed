"""A verdict on each claim: paired differences and their interval.

A pair is the two arms with the same seed, which saw the same data in the same
order, but where arms differ in just that (the tokenizer, the batch); the
difference of a pair is free of what the seed did to both. Pairs that began
with the same pre-trained model are one observation, their mean (`units.py`).
"""

import dataclasses
import math
import types
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from moe_jax.studies import (
  derived,
  fairness,
  results,
  same_data,
  study as study_lib,
  units as units_lib,
)

REPRODUCED = 'reproduced'
CONTRADICTED = 'contradicted'
INCONCLUSIVE = 'inconclusive'
UNTESTABLE = 'not testable here'
NOT_RUN = 'not run'
LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What the runs say of a claim.

  Attributes:
    claim: as declared.
    outcome: one of the five.
    pairs: seeds that both arms finished.
    values: means of the two arms over these; nan without a pair.
    difference, low, high: mean of a less b over the units, and its 95 % paired
      t interval; nan where there are too few pairs.
    reason: of an outcome that the interval does not explain, or ''.
    beside: of a claim that declares what is matched; None without pairs.
    units: pairs, those of one pre-trained model counted once; 1 where all are
      of one.
  """

  claim: study_lib.Claim
  outcome: str
  pairs: int
  values: tuple[float, float]
  difference: float
  low: float
  high: float
  reason: str = ''
  beside: fairness.FairnessReport | None = None
  units: int = 0

  @property
  def against_0(self) -> str:
    """'below', 'above' or 'across' 0, the interval; '' where there is none."""
    if math.isnan(self.low):
      return ''
    return 'below' if self.high < 0 else 'above' if self.low > 0 else 'across'


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
  """(mean, low, high) of a 95 % t interval.

  Equal differences give a point, be it of one pair.
  """
  d = np.asarray(differences, np.float64)
  mean, n = float(d.mean()), len(d)
  if n == 1 or np.ptp(d) == 0:
    return mean, mean, mean
  half = float(stats.t.ppf(0.5 + LEVEL / 2, n - 1) * stats.sem(d))
  return mean, mean - half, mean + half


def decide(direction: str, smallest: float, low: float, high: float) -> str:
  """The outcome for an interval of the difference a less b.

  'reproduced' where the whole interval is beyond the smallest effect in the
  claimed direction, 'contradicted' where it is beyond it in the other; for
  'equal' where it is within the margin, or wholly outside of it.
  """
  if direction == 'equal':
    if -smallest <= low and high <= smallest:
      return REPRODUCED
    outside = low > smallest or high < -smallest
    return CONTRADICTED if outside else INCONCLUSIVE
  if direction == 'lower':
    low, high = -high, -low
  if low > smallest:
    return REPRODUCED
  return CONTRADICTED if high < -smallest else INCONCLUSIVE


def judge(
  claim: study_lib.Claim,
  rows: Sequence[results.Row],
  untestable: Mapping[str, str] = types.MappingProxyType({}),
) -> Verdict:
  """The verdict on a claim from the rows of results.jsonl.

  Args:
    claim: as declared.
    rows: of the study.
    untestable: {claim: why}, decided before the runs; see `power`.

  Raises:
    ValueError: the arms, or those of its metrics, have seen different data.
  """
  same_data.check(claim, derived.finished(rows))
  a, b = _both(claim, rows)
  seeds = sorted(a.keys() & b.keys())
  why = untestable.get(claim.name, '')
  if len(seeds) < claim.seeds_needed:
    nan, outcome = math.nan, UNTESTABLE if why else NOT_RUN
    finished = _finished(claim, rows)
    made = '(' in ''.join(claim.metrics)
    if not why and made and len(finished) >= claim.seeds_needed:
      # A derived metric can have no value, as a share of a gain that is none.
      without = finished - set(seeds)
      if not seeds or without <= _finished(claim, rows, *claim.metrics):
        why = f'no value for seed {", ".join(map(str, sorted(without)))}'
        outcome = INCONCLUSIVE
    return Verdict(claim, outcome, len(seeds), (nan, nan), nan, nan, nan, why)
  units = differences(claim, rows)
  mean, low, high = interval(units.values)
  outcome = decide(claim.direction, claim.smallest_effect, low, high)
  if why:
    outcome = UNTESTABLE
  elif len(units.values) == 1 < len(seeds):
    outcome, why = INCONCLUSIVE, 'no two runs are of different models'
  elif claim.kind == 'quality' and len(seeds) > 1 and low == high:
    # What is trained varies; what does not has not been trained, as a model
    # that says one label whatever it is asked.
    outcome, why = INCONCLUSIVE, 'no variance over the seeds'
  elif only := set(seeds) & _bounds(claim, rows):
    outcome = INCONCLUSIVE
    why = f'of {len(only)} of {len(seeds)} seeds there is a bound alone'
  beside = None
  if claim.matched or claim.varied:
    beside = fairness.report(
      claim.arms, claim.matched, results.latest(rows), seeds
    )
    if outcome in (REPRODUCED, CONTRADICTED) and beside.unfair:
      outcome, why = INCONCLUSIVE, beside.unfair
  means = tuple(
    float(np.mean(_units(claim, {s: v[s] for s in seeds}, rows).values))
    for v in (a, b)
  )
  found = means, mean, low, high, why, beside, units.count
  return Verdict(claim, outcome, len(seeds), *found)


def differences(
  claim: study_lib.Claim, rows: Sequence[results.Row]
) -> units_lib.Units:
  """a less b of each seed that has both, as observations."""
  a, b = _both(claim, rows)
  return _units(claim, {s: a[s] - b[s] for s in a.keys() & b.keys()}, rows)


def _units(claim, values, rows) -> units_lib.Units:
  done = derived.finished(rows)
  arms = {*claim.arms, *derived.named(claim.metrics, done)}
  return units_lib.of(values, arms, done)


def _both(claim, rows):
  return [
    derived.values(m, arm, rows) for m, arm in zip(claim.metrics, claim.arms)
  ]


def _bounds(claim, rows) -> set[int]:
  found = zip(claim.metrics, claim.arms)
  return set().union(*(derived.bounds(m, arm, rows) for m, arm in found))


def _finished(claim, rows, *metrics) -> set[int]:
  """Seeds that both arms finished, and all that stand in metrics."""
  done = derived.finished(rows)
  arms = {*claim.arms, *derived.named(metrics, done)}
  return set.intersection(*({s for a, s in done if a == arm} for arm in arms))
