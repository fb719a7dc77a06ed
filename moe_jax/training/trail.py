"""What the last steps of a run looked like, on average, and its loss curve.

A single step's loss is noise; two runs are compared by the mean over the last
tenth of their steps, and by curves of window means. Which steps these are is
known from the start, so that running sums are enough; they go into checkpoints,
and a resumed run's means are those of an undisturbed one.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from moe_jax import types
from moe_jax.parallel import axes as axes_lib
from moe_jax.training import checks, health, session as session_lib

WINDOWS = 40  # of the curve
# Of `analysis.health`: means over layers, then over steps.
HEALTH = ('max_violation', 'load_cv', 'dead', 'experts_used', 'local')


@dataclasses.dataclass
class _Window:
  """Sums over the steps `first` to `last`, so far over `count` of them.

  Attributes:
    sums: floats by name; 'cause' and 'held', the seats there were, are lists
      of ints, those of all layers.
    partial: names that not all of these steps had, as a run may go on with
      other balancing rules; these have no sum.
    skipped: how many steps changed nothing, and are in no sum.
  """

  first: int
  last: int
  count: int = 0
  sums: dict[str, Any] = dataclasses.field(default_factory=dict)
  partial: list[str] = dataclasses.field(default_factory=list)
  skipped: int = 0

  def add(self, step: int, found) -> None:
    """Adds `found()`, numbers by name, of a step of the window."""
    if not self.first <= step <= self.last:
      return
    values, sums = found(), self.sums
    if self.count:
      self.partial = sorted({*self.partial, *(values.keys() ^ sums.keys())})
    self.sums = {
      name: (value + np.asarray(sums.get(name, 0))).tolist()
      for name, value in values.items()
      if name not in self.partial
    }
    self.count += 1

  @property
  def whole(self) -> bool:
    return self.count + self.skipped == self.last - self.first + 1

  def mean(self, name: str) -> float:
    return self.sums[name] / self.count

  def goes_on_from(self, other: '_Window', step: int) -> bool:
    """Whether the other, kept at a step, has what this one would have then."""
    return self.first == other.first and min(self.last, step) == min(
      other.last, step
    )


class Trail:
  """Sums up every step's metrics."""

  def __init__(self, session: session_lib.Session):
    S = session.config.train.steps
    tenth = max(1, math.ceil(S / 10))
    parts = np.array_split(np.arange(1, S + 1), min(WINDOWS, S))
    self._windows = {
      f'curve_{i}': _Window(int(p[0]), int(p[-1])) for i, p in enumerate(parts)
    }
    self._curve = list(self._windows.values())
    self._early = self._windows['early'] = _Window(1, tenth)
    self._tail = self._windows['tail'] = _Window(S - tenth + 1, S)
    self._layers = {
      name: sum(stack.sparse)
      for name, stack in session.model.stacks.items()
      if any(stack.sparse)
    }
    held = seats(session, 'train')
    self._held_Q = np.repeat(
      [held[k] for k in self._layers], list(self._layers.values())
    )

  def add(self, step: int, metrics: dict[str, Any]) -> None:
    """Takes a step's arrays, fetched; the steps in order."""
    for window in self._curve:
      window.add(step, lambda: {'loss': float(metrics['loss'])})
    self._tail.add(step, lambda: _numbers(metrics, self._held_Q))
    if self._layers:
      violation = lambda: np.mean(health.rates(metrics)['max_violation'])
      self._early.add(step, lambda: {'max_violation': violation()})

  def skip(self, step: int) -> None:
    """Takes a step that changed nothing, instead of `add`."""
    for window in self._windows.values():
      window.skipped += window.first <= step <= window.last

  def state(self) -> dict[str, Any]:
    """JSON, for a checkpoint of the step added last."""
    plain = lambda v: v if isinstance(v, list) or math.isfinite(v) else None
    return {
      name: dataclasses.asdict(window)
      | {'sums': {k: plain(v) for k, v in window.sums.items()}}
      for name, window in self._windows.items()
      if window.count or window.skipped
    }

  def restore(self, step: int, kept: Mapping[str, Any] | None) -> None:
    """Takes up the sums of a checkpoint.

    What cannot be known any more is left out of the summary, which says so: of
    a checkpoint without sums, of a run whose number of steps was changed when
    it had begun with the steps in question, or of rules that came or went
    among them.

    Args:
      step: of the checkpoint.
      kept: its `state`; None where it has none.
    """
    for name, window in self._windows.items():
      old = _Window(**kept[name]) if kept and name in kept else None
      if old and window.goes_on_from(old, step):
        # JSON has no nan.
        back = lambda v: math.nan if v is None else v
        window.sums = {k: back(v) for k, v in old.sums.items()}
        window.count, window.partial = old.count, old.partial
        window.skipped = old.skipped
        if 'cause' in window.sums and 'held' not in window.sums:
          # Checkpoints used to have no seats: as many as today's, then.
          window.sums['held'] = (window.count * self._held_Q).tolist()

  def summary(self) -> dict[str, Any]:
    """Means of the last tenth of the steps, by name.

    Returns:
      'train/loss', and 'train/averaged_steps' that it is the mean of;
      'curve', window means of the loss by the last step of the window;
      'train/distill_loss' of a run with a teacher; of an MoE model
      'train/dropped' and 'train/wasted' (with two stacks also
      'train/<stack>/...'), as shares of the assignments and of the seats;
      'train/balance/<rule>', 'train/entropy', 'train/load_max' and
      'train/logsumexp'; 'train/<name>' of HEALTH, and
      'train/early_max_violation' of the first tenth. What is left out, as
      `restore` says, is named in 'not_known'.
    """
    out, lost = self._means_of_windows(), []
    if self._tail.whole and self._tail.count:
      sums = self._tail.sums
      names = [k for k in sums if k not in ('cause', 'held')]
      out |= {f'train/{k}': self._tail.mean(k) for k in names}
      out['train/averaged_steps'] = self._tail.count
      lost += [f'train/{k}' for k in self._tail.partial]
      if 'cause' in sums:
        out |= self._seating(*map(np.array, (sums['cause'], sums['held'])))
    elif not self._tail.whole:
      lost.append(f'train/... (of steps {self._tail.first} on)')
    if self._layers and self._early.whole and self._early.count:
      out['train/early_max_violation'] = self._early.mean('max_violation')
    elif self._layers and not self._early.whole:
      lost.append('train/early_max_violation')
    missing = [w for w in self._curve if not w.whole]
    if missing:
      steps = f'{missing[0].first} to {missing[-1].last}'
      lost.append(f'curve (of steps {steps})')
    if lost:
      out['not_known'] = f'{", ".join(lost)}: resumed without sums of them'
    return out

  def _seating(self, cause_QC, held_Q) -> dict[str, float]:
    names = {'': slice(None)}
    if len(self._layers) > 1:
      first = 0
      for name, count in self._layers.items():
        names[f'{name}/'] = slice(first, first + count)
        first += count
    out = {}
    for name, mine in names.items():
      out[f'train/{name}dropped'] = dropped(cause_QC[mine])
      out[f'train/{name}wasted'] = wasted(
        cause_QC[mine], int(held_Q[mine].sum())
      )
    return out

  def _means_of_windows(self) -> dict[str, list]:
    whole = [w for w in self._curve if w.whole and w.count]
    losses = [w.mean('loss') for w in whole]
    steps = [w.last for w in whole]
    return {'curve': {'step': steps, 'loss': losses}} if whole else {}


def _numbers(metrics: dict[str, Any], held_Q: np.ndarray) -> dict[str, Any]:
  """A step's numbers that are averaged, means over layers; of seats, sums."""
  out = {'loss': float(metrics['loss'])}
  if 'distill_loss' in metrics:
    out['distill_loss'] = float(metrics['distill_loss'])
  if 'load' not in metrics:
    return out
  out |= {'cause': np.asarray(metrics['cause'], np.int64), 'held': held_Q}
  for rule, value in metrics['balance'].items():
    out[f'balance/{rule}'] = np.mean(value, dtype=np.float64)
  out['entropy'] = np.mean(metrics['entropy'], dtype=np.float64)
  out['load_max'] = _load_max(metrics)
  rates = health.rates(metrics)
  for name in (*HEALTH, 'logsumexp'):
    if name in rates:
      out[name] = np.mean(rates[name])
  return out


def _load_max(metrics) -> float:
  load_QE = np.asarray(metrics['load'], np.float64)
  mean_Q = np.maximum(load_QE.mean(-1), 1e-9)
  return float((load_QE.max(-1) / mean_Q).mean())


def dropped(cause_xC) -> float:
  """Share of the assignments sent that found no row; last axis is cause."""
  causes = np.asarray(cause_xC, np.int64)
  causes = causes.reshape(-1, causes.shape[-1]).sum(0)
  lost = causes[types.CAPACITY] + causes[types.RECEIVER]
  return float(lost / max(causes[types.KEPT] + lost, 1))


def wasted(cause_xC, seats_held: int) -> float:
  """Share of `seats_held` seats that stayed empty; last axis is cause."""
  kept = int(np.asarray(cause_xC, np.int64)[..., types.KEPT].sum())
  return 1 - kept / max(seats_held, 1)


def seats(session: session_lib.Session, split: str) -> dict[str, int]:
  """Rows that a layer of each sparse stack has for a batch, all experts'.

  Without drops an expert has as many as a group has tokens, which is what
  `scatter` holds; other dispatches may hold fewer.

  Args:
    session: of a run.
    split: 'train' or 'eval'.
  """
  c, found = session.config, {}
  training = split == 'train'
  axes = axes_lib.make(session.mesh.shape)
  parts = axes.size(axes.batch) * (c.train.accumulate if training else 1)
  for name in checks.sparse_stacks(c):
    made = session.model.stacks[name].moe
    tokens = c[split].batch_size * session.lengths[name]
    factor = made.capacity_factor if training else made.eval_capacity_factor
    T = made.tokens_of_group(tokens // parts, training)
    rows = made.rows(T, factor) * made.num_experts
    found[name] = tokens // T * rows
  return found
