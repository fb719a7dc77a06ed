"""Steps whose loss or gradient is not finite, and which change nothing.

`train.on_nonfinite='skip'`: the step is chosen inside the compiled program, so
that parameters, optimizer and balancing state are to the bit what they were;
its batch is passed over, and `step` goes on, as all draws follow from it.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from moe_jax.errors import UserError
from moe_jax.training.state import TrainState

CHOICES = ('stop', 'skip')
_WATCHED = ('loss', 'total_loss', 'grad_norm')


def check(config) -> None:
  """Raises ValueError where the config asks for something else."""
  given = config.train.on_nonfinite
  if given not in CHOICES:
    raise UserError(
      f'train.on_nonfinite={given!r}; valid: {", ".join(CHOICES)}'
    )


def choose(
  new: TrainState, old: TrainState, metrics: Mapping[str, Any]
) -> tuple[TrainState, jax.Array]:
  """(the state to go on with, whether the step is passed over), traced."""
  good = jnp.stack([jnp.isfinite(metrics[k]) for k in _WATCHED]).all()
  kept = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)
  return kept.replace(step=new.step), ~good


def skipped(metrics: Mapping[str, Any]) -> bool:
  """Whether a step, by its metrics, was passed over."""
  return bool(metrics.get('skipped', False))


class Skips:
  """Counts them, over all starts of a run; at most so many in a row."""

  def __init__(self, most: int, kept: Mapping[str, int] | None = None):
    """Goes on from `kept`, the `state` in a checkpoint."""
    self._most = most
    self.total, self._in_row = 0, 0
    if kept:
      self.total, self._in_row = kept['total'], kept['in_row']

  def good(self) -> None:
    """A step was not passed over."""
    self._in_row = 0

  def add(self, metrics: Mapping[str, Any]) -> str:
    """A step was; what to say where it is one too many, or ''."""
    self.total += 1
    self._in_row += 1
    if self._in_row <= self._most:
      return ''
    bad = next(k for k in _WATCHED if not math.isfinite(metrics[k]))
    return (
      f'{bad} is {float(metrics[bad])}, the {self._in_row}. in a row'
      f' (train.max_skips={self._most}),'
    )

  def state(self) -> dict[str, int]:
    """JSON, for a checkpoint."""
    return {'total': self.total, 'in_row': self._in_row}
