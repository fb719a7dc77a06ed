"""Seconds of several candidates, side by side.

A machine's speed drifts: by its clock, its heat, its other users. Candidates
therefore run in turn, a, b, c, a, b, c, ..., and a ratio is the median over
rounds of what two candidates took in the same round.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from moe_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Spread:
  """Median and quartiles."""

  median: float
  low: float
  high: float


def spread(values: Sequence[float]) -> Spread:
  """Median and quartiles of at least one value."""
  low, median, high = np.percentile(values, (25, 50, 75))
  return Spread(float(median), float(low), float(high))


def ratio(of: Sequence[float], to: Sequence[float]) -> Spread:
  """Median and quartiles, over rounds, of `of` / `to`."""
  return spread([a / b for a, b in zip(of, to, strict=True)])


def alternate(
  candidates: Mapping[str, Callable[[], Any]],
  repeats: int,
  warmup: int = 2,
  clock: Callable[[], float] = time.perf_counter,
) -> tuple[dict[str, list[float]], dict[str, Exception]]:
  """Runs every candidate `warmup` and then `repeats` times, in turn.

  Args:
    candidates: functions that return when their work is done.
    repeats: rounds that count, at least 1.
    warmup: rounds before them.
    clock: seconds.

  Returns:
    Seconds of every round by name, and what those raised that failed; these
    have no seconds and are not run again.
  """
  if repeats < 1:
    raise UserError(f'repeats={repeats} must be at least 1')
  seconds: dict[str, list[float]] = {name: [] for name in candidates}
  failed: dict[str, Exception] = {}
  for i in range(-warmup, repeats):
    for name, run in candidates.items():
      if name in failed:
        continue
      try:
        start = clock()
        run()
        took = clock() - start
      except Exception as e:  # the others go on
        failed[name] = e
        del seconds[name]
        continue
      if i >= 0:
        seconds[name].append(took)
  return seconds, failed
