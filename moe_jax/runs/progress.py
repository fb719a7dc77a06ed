"""Shows how a run goes: a bar on a terminal, now and then a line in a log."""

import shutil
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import tqdm

_SECONDS_BETWEEN_LINES = 10.0
_SHOWN = (
  ('loss', lambda v: f'loss {v:.4f}'),
  ('tokens_per_second', lambda v: f'{v:,.0f} tokens/s'),
  ('moe/dropped', lambda v: f'dropped {100 * v:.2f} %'),
)


class Progress:
  """Step, loss, tokens per second, drop rate and time left.

  On a terminal a bar; elsewhere a plain line where metrics come, at most one
  in ten seconds, but always for the first and for the last step.
  """

  def __init__(
    self,
    total: int,
    start: int = 0,
    *,
    scores: Mapping[str, Callable[[float], str]] | None = None,
    stream: TextIO | None = None,
    active: bool = True,
  ):
    """Starts to show.

    Args:
      total: the step at which the run ends.
      start: the step that it was restored at, 0 for a new run.
      scores: what else is shown, by its key in the metrics.
      stream: where to show; stderr by default.
      active: False shows nothing, for all hosts but one.
    """
    self._total = total
    *first, dropped = _SHOWN
    self._shown = (*first, *(scores or {}).items(), dropped)
    self._stream = sys.stderr if stream is None else stream
    self._active = active
    self._metrics: dict[str, Any] = {}
    # The clock starts at the first update: before it the step compiles.
    self._first: tuple[int, float] | None = None
    self._printed = -float('inf')
    self._bar = None
    if active and self._stream.isatty():
      columns, rows = shutil.get_terminal_size()
      self._bar = tqdm.tqdm(
        total=total,
        initial=start,
        file=self._stream,
        # tqdm shows nothing on a terminal that says it has no size.
        ncols=columns,
        nrows=rows,
        bar_format='{percentage:3.0f} %|{bar}| {n_fmt}/{total_fmt}{postfix}',
      )

  def update(self, step: int, metrics: Mapping[str, Any] | None = None) -> None:
    """Tells that `step` steps are done.

    Args:
      step: counted from the run's beginning, not from `start`.
      metrics: `loss`, `tokens_per_second`, `moe/dropped` (a fraction) and the
        scores, those that there are; between log steps, none.
    """
    if not self._active:
      return
    now = time.monotonic()
    if self._first is None:
      self._first = step, now
    self._metrics.update(metrics or {})
    shown = [f(self._metrics[k]) for k, f in self._shown if k in self._metrics]
    shown += self._left(step, now)
    if self._bar is not None:
      self._bar.set_postfix_str(', '.join(shown), refresh=False)
      self._bar.update(step - self._bar.n)
    elif metrics and (
      step >= self._total or now - self._printed >= _SECONDS_BETWEEN_LINES
    ):
      self._printed = now
      share = f'{100 * step // max(self._total, 1)} %'
      line = [f'step {step}/{self._total} ({share})', *shown]
      print('  '.join(line), file=self._stream, flush=True)

  def close(self) -> None:
    """Leaves the bar as it stands and the terminal on a new line."""
    if self._bar is not None:
      self._bar.refresh()
      self._bar.close()

  def _left(self, step: int, now: float) -> list[str]:
    first, began = self._first
    if step <= first or step >= self._total:
      return []
    seconds = (now - began) / (step - first) * (self._total - step)
    return [f'{tqdm.tqdm.format_interval(seconds)} left']
