"""Losses far above those before, and what a run does about them.

A spike is a loss of more than `deviations` robust standard deviations (1.4826
times the median absolute deviation, which for normal numbers is one standard
deviation: Leys et al., "Detecting outliers: Do not use standard deviation
around the mean, use absolute deviation around the median", J. Exp. Soc. Psych.
2013) above the median of the last `window` losses. Single outliers move neither
of the two; a mean and its deviation would be lost with the first one.

What follows is PaLM's (Chowdhery et al., "PaLM: Scaling Language Modeling with
Pathways", JMLR 2023, arXiv:2204.02311, section 5.1): the run goes back to a
checkpoint from before the spike and passes over the batches around it, 200 to
500 there, as the same batches from another state did not make it spike.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from moe_jax import registry
from moe_jax.errors import UserError

_NORMAL = 1.4826


@dataclasses.dataclass(frozen=True)
class Rollback:
  """Back to a checkpoint, and past the batches of the spike.

  Attributes:
    window: losses that a loss is compared with; before there are so many, none
      is a spike.
    deviations: from which on it is.
    batches: that are passed over, from the checkpoint on; more, where the spike
      is later.
    most: rollbacks of a run; one more ends it.
  """

  window: int = 64
  deviations: float = 10.0
  batches: int = 200
  most: int = 3

  def __post_init__(self):
    for name, least in (('window', 3), ('batches', 0), ('most', 1)):
      value = getattr(self, name)
      if not (type(value) is int and value >= least):
        raise UserError(
          f'train.on_spike: {name}={value!r}; a whole number of at least'
          f' {least} is wanted'
        )
    if not (isinstance(self.deviations, int | float) and self.deviations > 0):
      raise UserError(
        f'train.on_spike: deviations={self.deviations!r}; a number above 0 is'
        ' wanted'
      )


CHOICES = {'ignore': lambda: None, 'rollback': Rollback}


def policy(config) -> Rollback | None:
  """That of `train.on_spike`; None looks for no spikes.

  Raises:
    ValueError: another thing, or a bad argument.
  """
  return registry.call(config.train.on_spike, CHOICES, 'train.on_spike')


class Spikes:
  """Looks at losses, one a step.

  Attributes:
    rollbacks: of the run so far.
  """

  def __init__(
    self, policy: Rollback | None, kept: Mapping[str, Any] | None = None
  ):
    """Goes on from `kept`, the `state` in a checkpoint."""
    self._policy = policy
    self._losses = list(kept['losses']) if kept else []
    self.rollbacks: int = kept['rollbacks'] if kept else 0

  def add(self, loss: float) -> str:
    """What to say where it is a spike, which is then not counted in; ''."""
    p = self._policy
    if p is None:
      return ''
    before = self._losses[-p.window :]
    if len(before) == p.window:
      middle = float(np.median(before))
      spread = _NORMAL * float(np.median(np.abs(np.array(before) - middle)))
      # Losses that are all equal have none; rounding is no spike.
      spread = max(spread, 1e-6 * abs(middle))
      if loss - middle > p.deviations * spread:
        return (
          f'loss {loss:.6g} is {(loss - middle) / max(spread, 1e-30):.3g}'
          f' deviations above {middle:.6g}, the median of {p.window} steps'
        )
    self._losses = [*before, loss][-p.window :]
    return ''

  def state(self) -> dict[str, Any]:
    """JSON, for a checkpoint."""
    return {'losses': self._losses, 'rollbacks': self.rollbacks}

  def counted(self) -> dict[str, int]:
    """Of a run that may, how many rollbacks it had."""
    return {'rollbacks': self.rollbacks} if self._policy else {}
