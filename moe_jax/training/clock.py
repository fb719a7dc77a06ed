"""How fast a run goes, and how long it has gone on.

A resumed run's clock goes on with that of its checkpoint; these numbers, and
what is made of them, are all that differs from an undisturbed run's records.
"""

import contextlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np


class Clock:
  """Tokens per second of the steps after the first, without evaluations.

  The first step after every start compiles, and is left out.
  """

  def __init__(self, kept: Mapping[str, Any] | None = None):
    """Starts.

    Args:
      kept: `state` of the run that goes on.
    """
    kept = kept or {}
    # Of the starts before this one.
    self._seconds = kept.get('seconds', 0.0)
    self._tokens = kept.get('tokens', 0.0)
    self._elapsed = kept.get('elapsed', 0.0)
    self._step_seconds = kept.get('step_seconds')
    self._began = time.monotonic()
    self._at: float | None = None  # of the last step
    self._durations: list[float] = []
    self._recent: tuple[float, float] = (self._elapsed, self._tokens)

  def tick(self, tokens: float) -> None:
    """A step of so many tokens is done."""
    now, before = time.monotonic(), self._at
    self._at = now
    if before is None:
      return
    self._durations.append(now - before)
    self._elapsed += now - before
    self._tokens += tokens

  def rates(self) -> dict[str, float]:
    """Tokens per second since the last call, and seconds since the start."""
    out = {'seconds': self.seconds}
    elapsed, tokens = self._recent
    if self._tokens > tokens:
      self._recent = self._elapsed, self._tokens
      elapsed = max(self._elapsed - elapsed, 1e-9)
      out['tokens_per_second'] = (self._tokens - tokens) / elapsed
    return out

  @contextlib.contextmanager
  def paused(self):
    """The time inside counts as no step's."""
    began = time.monotonic()
    yield
    if self._at is not None:
      self._at += time.monotonic() - began

  @property
  def seconds(self) -> float:
    """Since the run began, less what lay between a stop and a start."""
    return self._seconds + time.monotonic() - self._began

  @property
  def tokens_per_second(self) -> float | None:
    """None where nothing was measured."""
    return self._tokens / max(self._elapsed, 1e-9) if self._tokens else None

  @property
  def step_seconds(self) -> float | None:
    """The median since the last start that has two steps, or None."""
    if self._durations:
      return float(np.median(self._durations))
    return self._step_seconds

  def state(self) -> dict[str, Any]:
    """JSON, to go on with."""
    return {
      'seconds': self.seconds,
      'tokens': self._tokens,
      'elapsed': self._elapsed,
      'step_seconds': self.step_seconds,
    }
