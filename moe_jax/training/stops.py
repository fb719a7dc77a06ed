"""Steps that gave what they should not: numbers that are not finite, spikes.

A checkpoint is called good where it is of a state before the one that gave such
a number: from that one on all is as it was.
"""

import math
from collections.abc import Mapping
from typing import Any

from moe_jax.errors import NotFiniteError
from moe_jax.runs import checkpoint, finite
from moe_jax.training import evaluation

WATCHED = ('loss', 'total_loss', 'grad_norm')


class BadStepError(Exception):
  """What was bad, for `trials`, which decides what becomes of the run.

  Attributes:
    step: at which it was found.
    what: in words.
    last: the last step whose state is good.
    seen: what would be the same if the step were run again.
    rollbacks: of the run before, where it is a spike; of all else None.
  """

  def __init__(
    self,
    step: int,
    what: str,
    last: int,
    seen: Any = (),
    rollbacks: int | None = None,
  ):
    super().__init__(what)
    self.step, self.what, self.last = step, what, last
    self.seen, self.rollbacks = (what, seen), rollbacks

  @property
  def spike(self) -> bool:
    return self.rollbacks is not None


def check_metrics(step: int, metrics: Mapping[str, Any]) -> None:
  """Raises where a step's loss or gradient is not finite."""
  for name in WATCHED:
    if not math.isfinite(metrics[name]):
      # They are those of the parameters before the update.
      what = f'{name} is {float(metrics[name])}'
      raise BadStepError(step, what, step - 2, bits(metrics))


def bits(metrics: Mapping[str, Any]) -> tuple[str, ...]:
  """Of what a step says of itself."""
  return tuple(float(metrics[name]).hex() for name in WATCHED)


def check_state(step: int, state: Any) -> None:
  """Raises where the state after a step is not finite; names the array."""
  fault = finite.fault(checkpoint.named(state))
  if fault:
    raise BadStepError(step, f'after the update {fault}', step - 1)


def judge(
  step: int, evaluate: evaluation.Evaluator, state: Any
) -> dict[str, Any]:
  """The scores of the state after a step; raises where they are not finite."""
  try:
    return evaluate(state.params, state.balance)
  except NotFiniteError as e:
    what = str(e)
  raise BadStepError(step, what, step - 1)


def where(last: int, checkpoints: checkpoint.Checkpointer) -> str:
  """The checkpoint to go back to; one after `last` would come to it again."""
  checkpoints.wait()  # for one that is still being written
  found = checkpoint.steps(checkpoints.directory)
  good = max((s for s in found if s <= last), default=None)
  kept = 'none' if good is None else f'step {good}'
  return f'last good checkpoint: {kept} in {checkpoints.directory}'
