"""What the last steps of a run looked like, on average, and its loss curve.

A single step's loss is noise; two runs are compared by the mean over the last
tenth of their steps, and by curves of window means.
"""

import collections
import math
import time
from typing import Any

import numpy as np

from moe_jax import types
from moe_jax.analysis import health
from moe_jax.parallel import axes as axes_lib
from moe_jax.training import session as session_lib

WINDOWS = 40  # of the curve
# Of `analysis.health`: means over layers, then over steps.
HEALTH = ('max_violation', 'load_cv', 'dead', 'experts_used', 'local')


class Trail:
  """Collects every step's metrics; a resumed run's begin where it resumed."""

  def __init__(self, session: session_lib.Session):
    self._steps = session.config.train.steps
    self._seats = seats(session, 'train')
    self._layers = {
      name: sum(stack.sparse)
      for name, stack in session.model.stacks.items()
      if any(stack.sparse)
    }
    self._losses: dict[int, float] = {}
    self._early: list[float] = []
    self._last = collections.deque(maxlen=max(1, math.ceil(self._steps / 10)))
    self._times: list[float] = []

  def add(self, step: int, metrics: dict[str, Any]) -> None:
    """Takes a step's arrays, fetched; called as soon as they are there."""
    self._times.append(time.monotonic())
    self._losses[step] = float(metrics['loss'])
    self._last.append(metrics)
    if self._layers and step <= self._last.maxlen:
      found = health.rates(metrics)['max_violation']
      self._early.append(float(np.mean(found)))

  def summary(self) -> dict[str, Any]:
    """Means of the last tenth of the steps, by name.

    Returns:
      'train/loss', and 'train/averaged_steps' that it is the mean of;
      'step_seconds', the median of all; 'curve', window means of the loss by
      the last step of the window; 'train/distill_loss' of a run with a teacher;
      of an MoE model 'train/dropped' and
      'train/wasted' (with two stacks also 'train/<stack>/...'), as shares of
      the assignments and of the seats; 'train/balance/<rule>',
      'train/entropy', 'train/load_max' and 'train/logsumexp'; 'train/<name>'
      of HEALTH, and 'train/early_max_violation' of the first tenth, where the
      run has all of it. {} without a step.
    """
    if not self._last:
      return {}
    mean = lambda f: float(np.mean([f(m) for m in self._last]))
    out = {
      'train/loss': mean(lambda m: m['loss']),
      'train/averaged_steps': len(self._last),
      'curve': self._curve(),
    }
    if 'distill_loss' in self._last[0]:
      out['train/distill_loss'] = mean(lambda m: m['distill_loss'])
    if len(self._times) > 1:
      out['step_seconds'] = float(np.median(np.diff(self._times)))
    if self._layers:
      out |= self._routing()
      for rule in self._last[0]['balance']:
        out[f'train/balance/{rule}'] = mean(lambda m, r=rule: m['balance'][r])
      out['train/entropy'] = mean(lambda m: m['entropy'])
      out['train/load_max'] = mean(_load_max)
      rates = [health.rates(m) for m in self._last]
      for name in HEALTH:
        found = [np.mean(r[name]) for r in rates]
        out[f'train/{name}'] = float(np.mean(found))
      if len(self._early) == self._last.maxlen:
        out['train/early_max_violation'] = float(np.mean(self._early))
      if 'logsumexp' in self._last[0]['health']:
        out['train/logsumexp'] = mean(
          lambda m: m['health']['logsumexp'] / m['health']['tokens']
        )
    return out

  def _routing(self) -> dict[str, float]:
    cause_QC = sum(np.asarray(m['cause'], np.int64) for m in self._last)
    names = {'': slice(None)}
    if len(self._layers) > 1:
      first = 0
      for name, count in self._layers.items():
        names[f'{name}/'] = slice(first, first + count)
        first += count
    held_Q = np.repeat(list(self._seats.values()), list(self._layers.values()))
    out = {}
    for name, mine in names.items():
      seats_held = int(held_Q[mine].sum()) * len(self._last)
      out[f'train/{name}dropped'] = dropped(cause_QC[mine])
      out[f'train/{name}wasted'] = wasted(cause_QC[mine], seats_held)
    return out

  def _curve(self) -> dict[str, list]:
    steps = np.array(sorted(self._losses))
    parts = np.array_split(steps, min(WINDOWS, len(steps)))
    means = [np.mean([self._losses[s] for s in p]) for p in parts]
    return {
      'step': [int(p[-1]) for p in parts],
      'loss': [float(m) for m in means],
    }


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
  for name in session_lib.sparse_stacks(c):
    made = session.model.stacks[name].moe(parent=None)
    tokens = c[split].batch_size * session_lib.lengths(c)[name]
    factor = made.capacity_factor if training else made.eval_capacity_factor
    T = made.tokens_of_group(tokens // parts, training)
    rows = made.rows(T, factor) * made.num_experts
    found[name] = tokens // T * rows
  return found
