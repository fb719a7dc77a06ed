"""A verdict on each claim: paired differences and their interval.

A pair is the two arms with the same seed, which saw the same data in the same
order, but where arms differ in just that (the tokenizer, the batch); the
difference of a pair is free of what the seed did to both.
"""

import dataclasses
import math
import types
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from moe_jax import registry
from moe_jax.errors import UserError
from moe_jax.studies import fairness, results, same_data, study as study_lib

REPRODUCED = 'reproduced'
CONTRADICTED = 'contradicted'
INCONCLUSIVE = 'inconclusive'
UNTESTABLE = 'not testable here'
NOT_RUN = 'not run'
LEVEL = 0.95
Done = same_data.Done


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What the runs say of a claim.

  Attributes:
    claim: as declared.
    outcome: one of the five.
    pairs: seeds that both arms finished.
    values: means of the two arms over these; nan without a pair.
    difference, low, high: mean of a less b over the pairs, and its 95 % paired
      t interval; nan where there are too few pairs.
    reason: of an outcome that the interval does not explain, or ''.
    beside: of a claim that declares what is matched; None without pairs.
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
  same_data.check(claim, _done(rows))
  a, b = _both(claim, rows)
  seeds = sorted(a.keys() & b.keys())
  why = untestable.get(claim.name, '')
  if len(seeds) < claim.seeds_needed:
    nan, outcome = math.nan, UNTESTABLE if why else NOT_RUN
    finished = _finished(claim, rows)
    derived = '(' in ''.join(claim.metrics)
    if not why and derived and len(finished) >= claim.seeds_needed:
      # A derived metric can have no value, as a share of a gain that is none.
      without = finished - set(seeds)
      if not seeds or without <= _finished(claim, rows, *claim.metrics):
        why = f'no value for seed {", ".join(map(str, sorted(without)))}'
        outcome = INCONCLUSIVE
    return Verdict(claim, outcome, len(seeds), (nan, nan), nan, nan, nan, why)
  d = [a[s] - b[s] for s in seeds]
  mean, low, high = interval(d)
  outcome = decide(claim.direction, claim.smallest_effect, low, high)
  if why:
    outcome = UNTESTABLE
  elif claim.kind == 'quality' and len(d) > 1 and np.ptp(d) == 0:
    # What is trained varies; what does not has not been trained, as a model
    # that says one label whatever it is asked.
    outcome, why = INCONCLUSIVE, 'no variance over the seeds'
  beside = None
  if claim.matched or claim.varied:
    beside = fairness.report(
      claim.arms, claim.matched, results.latest(rows), seeds
    )
    if outcome in (REPRODUCED, CONTRADICTED) and beside.unfair:
      outcome, why = INCONCLUSIVE, beside.unfair
  means = tuple(float(np.mean([v[s] for s in seeds])) for v in (a, b))
  found = means, mean, low, high, why, beside
  return Verdict(claim, outcome, len(seeds), *found)


def differences(
  claim: study_lib.Claim, rows: Sequence[results.Row]
) -> list[float]:
  """a less b of each seed that has both."""
  a, b = _both(claim, rows)
  return [a[s] - b[s] for s in sorted(a.keys() & b.keys())]


def _both(claim, rows):
  return [values(m, arm, rows) for m, arm in zip(claim.metrics, claim.arms)]


def _finished(claim, rows, *metrics) -> set[int]:
  """Seeds that both arms finished, and all that stand in metrics."""
  done = _done(rows)
  arms = {*claim.arms, *(a for a, _ in done if f"'{a}'" in ''.join(metrics))}
  return set.intersection(*({s for a, s in done if a == arm} for arm in arms))


def _done(rows) -> Done:
  return {
    k: r for k, r in results.latest(rows).items() if r['status'] == results.DONE
  }


def values(
  metric: str, arm: str, rows: Sequence[results.Row]
) -> dict[int, float]:
  """{seed: value} of an arm; seeds without the metric are left out.

  Args:
    metric: of a run's summary, or a call of DERIVED.
    arm: its name.
    rows: of the whole study.
  """
  done = _done(rows)
  if '(' in metric:
    return registry.call(metric, DERIVED, 'derived metric')(arm, done)
  return _plain(metric, arm, done)


def steps_to_loss(of: str):
  """Steps to the loss that the arm `of` ends with, of the same seed.

  Both losses are window means of the training curve, the end is the last
  window. An arm that does not get there counts with all of its steps.
  """

  def measure(arm: str, done: Done) -> dict[int, float]:
    found = {}
    for (name, seed), row in done.items():
      other = done.get((of, seed), {})
      if name != arm or not ('curve' in row and 'curve' in other):
        continue
      target = other['curve']['loss'][-1]
      found[seed] = steps_to(row['curve'], target)
    return found

  return measure


def steps_to(curve: Mapping[str, Sequence[float]], target: float) -> float:
  """The step at which a curve first falls to `target`, between its points."""
  steps, losses = curve['step'], curve['loss']
  for i, loss in enumerate(losses):
    if loss > target:
      continue
    if i == 0:
      return float(steps[0])
    part = (losses[i - 1] - target) / (losses[i - 1] - loss)
    return float(steps[i - 1] + part * (steps[i] - steps[i - 1]))
  return float(steps[-1])


def deviation(metric: str):
  """Distance from the arm's median over seeds: the spread, seed by seed.

  Differences of it between two arms are what Brown and Forsythe's test of equal
  variances looks at (JASA 69, 1974).
  """

  def measure(arm: str, done: Done) -> dict[int, float]:
    found = _plain(metric, arm, done)
    middle = np.median(list(found.values())) if found else 0.0
    return {seed: float(abs(v - middle)) for seed, v in found.items()}

  return measure


def mean_over(metric: str, arms: tuple[str, ...], minus: tuple[str, ...] = ()):
  """Mean of a metric over several arms, minus that over others, by seed.

  For claims on a row of a grid; the arm of the claim stands for them all. A
  seed counts where every arm has it.
  """

  def measure(arm: str, done: Done) -> dict[int, float]:
    if arm not in arms:
      raise UserError(f'mean_over: arm {arm!r} is none of {", ".join(arms)}')
    first, second = (
      [_plain(metric, a, done) for a in group] for group in (arms, minus)
    )
    seeds = set.intersection(*(set(v) for v in first + second))
    mean = lambda group, s: float(np.mean([v[s] for v in group]))
    return {
      s: mean(first, s) - (mean(second, s) if second else 0.0)
      for s in sorted(seeds)
    }

  return measure


def least(metric: str, arms: tuple[str, ...]):
  """The least value of a metric over several arms, by seed.

  For claims on the best of a grid; the arm of the claim stands for them all. An
  arm that diverged is not the best.
  """

  def measure(arm: str, done: Done) -> dict[int, float]:
    if arm not in arms:
      raise UserError(f'least: arm {arm!r} is none of {", ".join(arms)}')
    found = [_plain(metric, a, done) for a in arms]
    seeds = sorted(set().union(*found))
    return {s: min(v[s] for v in found if s in v) for s in seeds}

  return measure


def gap(metric: str, less: str):
  """A metric less another of the same run, as held-out less training loss."""

  def measure(arm: str, done: Done) -> dict[int, float]:
    a, b = _plain(metric, arm, done), _plain(less, arm, done)
    return {s: a[s] - b[s] for s in sorted(a.keys() & b.keys())}

  return measure


def ratio(metric: str, to: str):
  """A metric by another of the same run, as tokens by parameters."""

  def measure(arm: str, done: Done) -> dict[int, float]:
    a, b = _plain(metric, arm, done), _plain(to, arm, done)
    return {s: a[s] / b[s] for s in sorted(a.keys() & b.keys()) if b[s]}

  return measure


def share_of_gain(metric: str, worse: str, better: str):
  """How far an arm is on the way from one to another, 0 to 1, by seed.

  (worse - arm) / (worse - better), above of the same seed, below of the means
  over seeds: a ratio of two noisy differences would have no mean, and a
  'pretrain' arm has fewer seeds. {} where `better` is not lower than `worse`,
  since there is no gain to share.
  """

  def measure(arm: str, done: Done) -> dict[int, float]:
    start, end = _plain(metric, worse, done), _plain(metric, better, done)
    mine = _plain(metric, arm, done)
    if not (start and end):
      return {}
    whole = float(np.mean(list(start.values())) - np.mean(list(end.values())))
    if whole <= 0:
      return {}
    seeds = sorted(mine.keys() & start.keys())
    return {s: (start[s] - mine[s]) / whole for s in seeds}

  return measure


def speed_up(over: tuple[str, ...]):
  """How many times the arm's steps the arms `over` need for its loss, by seed.

  `over` is one model in runs of several lengths, each with a schedule of its
  own; between them the logarithm of steps is linear in the held-out loss.
  Outside of their losses what is said is a lower bound: a loss below all counts
  as the longest run's, one above all as none, 0.
  """
  loss, steps = 'eval/loss', 'steps'

  def measure(arm: str, done: Done) -> dict[int, float]:
    runs = [(_plain(loss, a, done), _plain(steps, a, done)) for a in over]
    mine, took = _plain(loss, arm, done), _plain(steps, arm, done)
    found = {}
    for seed in mine:
      if all(seed in losses for losses, _ in runs):
        # Falling losses, turned for `np.interp`; noise may swap two lengths.
        losses, logs = zip(
          *sorted((a[seed], math.log(b[seed])) for a, b in runs)
        )
        needed = float(np.interp(mine[seed], losses, logs, right=-math.inf))
        found[seed] = math.exp(needed) / took[seed]
    return found

  return measure


def at_equal(metric: str, at: str, over: tuple[str, ...]):
  """A metric less what arms `over` have at the same value of another, by seed.

  As reasoning at equal training loss. Between arms `over`, ordered by `at`, the
  metric is linear; of these arms themselves it is 0. A seed whose value of `at`
  is outside of theirs is left out: nothing is equal to it.
  """

  def measure(arm: str, done: Done) -> dict[int, float]:
    lines = [(_plain(at, a, done), _plain(metric, a, done)) for a in over]
    where, mine, found = _plain(at, arm, done), _plain(metric, arm, done), {}
    for seed in sorted(where.keys() & mine.keys()):
      if all(seed in a and seed in b for a, b in lines):
        x, y = zip(*sorted((a[seed], b[seed]) for a, b in lines))
        if x[0] <= where[seed] <= x[-1]:
          found[seed] = mine[seed] - float(np.interp(where[seed], x, y))
    return found

  return measure


def _plain(metric: str, arm: str, done: Done) -> dict[int, float]:
  return {
    seed: float(row['metrics'][metric])
    for (name, seed), row in done.items()
    if name == arm and metric in row['metrics']
  }


DERIVED: dict[str, Any] = {
  'steps_to_loss': steps_to_loss,
  'deviation': deviation,
  'mean_over': mean_over,
  'least': least,
  'gap': gap,
  'ratio': ratio,
  'share_of_gain': share_of_gain,
  'speed_up': speed_up,
  'at_equal': at_equal,
}
