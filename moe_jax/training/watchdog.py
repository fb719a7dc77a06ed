"""Ends a process whose steps do not end any more: a hang, said with its stack.

A dead peer is noticed by JAX, a device or a file system that never answers by
nobody. A thread waits; where no sign of life comes for too long, it prints one
line and the stacks of all threads, and ends the process with a code of its own,
so that whoever started it starts it again. It needs Python's lock for that,
which what waits for a device or for a file has given up.
"""

import faulthandler
import os
import sys
import threading
import time

# sysexits.h's EX_TEMPFAIL: another try may do.
CODE = 75
# The first step of a start compiles, and waits for the others; an evaluation
# has many batches.
_LONG = 10
# Of the limit, after which the clock is looked at again.
_SHARE = 0.25


class Watchdog:
  """Waits for signs of life; a context manager."""

  def __init__(self, max_minutes: float, at: int = 0):
    """Starts to wait when it is entered.

    Args:
      max_minutes: between two signs; the first step, and evaluations, may take
        ten times as long. 0 is no limit.
      at: the step that the run takes up after.
    """
    self._minutes, self._at = max_minutes, at
    self._allowed = 60 * max_minutes * _LONG
    self._heard = time.monotonic()
    self._over = threading.Event()

  def alive(self, step: int, judges: bool = False) -> None:
    """A step is done, and what came after it, too; or it is judged now."""
    self._at = step
    self._allowed = 60 * self._minutes * (_LONG if judges else 1)
    self._heard = time.monotonic()

  def __enter__(self) -> 'Watchdog':
    if self._minutes:
      threading.Thread(target=self._watch, daemon=True).start()
    return self

  def __exit__(self, *exc) -> None:
    self._over.set()

  def _watch(self) -> None:
    while True:
      left = self._heard + self._allowed - time.monotonic()
      if left <= 0:
        break
      # What is allowed may be less by then.
      if self._over.wait(min(left, 60 * self._minutes * _SHARE)):
        return
    line = (
      f'error: nothing has ended for {self._allowed / 60:g} minutes, after step'
      f' {self._at} (train.max_step_minutes={self._minutes:g}): this process'
      f' ends with code {CODE}; the same command goes on from the last'
      ' checkpoint\n'
    )
    # `print` may wait for a lock of the thread that hangs.
    os.write(2, line.encode())
    try:
      # What pytest or a notebook has for stderr may be no file.
      faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
    finally:
      os._exit(CODE)
