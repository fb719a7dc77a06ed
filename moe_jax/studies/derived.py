"""Metrics of an arm by seed: those of summaries, and what is made of them."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moe_jax import registry
from moe_jax.errors import UserError
from moe_jax.studies import results, same_data

Done = same_data.Done


def finished(rows: Sequence[results.Row]) -> Done:
  """The rows of runs that are done, by arm and seed."""
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
  done = finished(rows)
  if '(' in metric:
    return registry.call(metric, DERIVED, 'derived metric')(arm, done)
  return _plain(metric, arm, done)


def named(metrics: Sequence[str], done: Done) -> set[str]:
  """The arms whose names stand in metrics."""
  return {arm for arm, _ in done if f"'{arm}'" in ''.join(metrics)}


def bounds(metric: str, arm: str, rows: Sequence[results.Row]) -> set[int]:
  """Seeds of which `values` has a lower bound and no more."""
  if '(' not in metric:
    return set()
  measure = registry.call(metric, DERIVED, 'derived metric')
  of = getattr(measure, 'bounds', None)
  return of(arm, finished(rows)) if of else set()


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


@dataclasses.dataclass(frozen=True)
class SpeedUp:
  """How many times the arm's steps the arms `over` need for its loss, by seed.

  `over` is one model in runs of several lengths, each with a schedule of its
  own; between them the logarithm of steps is linear in the held-out loss.
  Outside of their losses what is said is a lower bound: a loss below all counts
  as the longest run's, one above all as none, 0.
  """

  over: tuple[str, ...]

  def __call__(self, arm: str, done: Done) -> dict[int, float]:
    steps, took = 'steps', _plain('steps', arm, done)
    found = {}
    for seed, (mine, losses) in self._losses(arm, done).items():
      logs = [math.log(_plain(steps, a, done)[seed]) for a in self.over]
      # Falling losses, turned for `np.interp`; noise may swap two lengths.
      losses, logs = zip(*sorted(zip(losses, logs)))
      needed = float(np.interp(mine, losses, logs, right=-math.inf))
      found[seed] = math.exp(needed) / took[seed]
    return found

  def bounds(self, arm: str, done: Done) -> set[int]:
    """Seeds whose value is a lower bound and no more."""
    losses = self._losses(arm, done)
    return {
      s for s, (mine, of) in losses.items() if not min(of) <= mine <= max(of)
    }

  def _losses(self, arm, done) -> dict[int, tuple[float, list[float]]]:
    """{seed: (the arm's loss, those of `over`)}."""
    mine = _plain('eval/loss', arm, done)
    runs = [_plain('eval/loss', a, done) for a in self.over]
    return {
      s: (loss, [r[s] for r in runs])
      for s, loss in mine.items()
      if all(s in r for r in runs)
    }


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
  'speed_up': SpeedUp,
  'at_equal': at_equal,
}
