"""What ends a run: numbers that are not finite, with the step to go back to.

All raise FloatingPointError. A checkpoint is called good where it is of a state
before the one that gave such a number: from that one on all is as it was.
"""

import math
from collections.abc import Mapping
from typing import Any

from moe_jax.errors import NotFiniteError
from moe_jax.runs import checkpoint, finite
from moe_jax.training import evaluation


def check_metrics(
  step: int, metrics: Mapping[str, Any], checkpoints: checkpoint.Checkpointer
) -> None:
  """Raises where a step's loss or gradient is not finite."""
  for name in ('loss', 'total_loss', 'grad_norm'):
    if not math.isfinite(metrics[name]):
      # They are those of the parameters before the update.
      what = f'{name} is {float(metrics[name])}'
      raise error(what, step, step - 2, checkpoints)


def check_state(
  step: int, state: Any, checkpoints: checkpoint.Checkpointer
) -> None:
  """Raises where the state after a step is not finite; names the array."""
  fault = finite.fault(checkpoint.named(state))
  if fault:
    raise error(f'after the update {fault}', step, step - 1, checkpoints)


def judge(
  step: int,
  evaluate: evaluation.Evaluator,
  state: Any,
  checkpoints: checkpoint.Checkpointer,
) -> dict[str, Any]:
  """The scores of the state after a step; raises where they are not finite."""
  try:
    return evaluate(state.params, state.balance)
  except NotFiniteError as e:
    raise error(str(e), step, step - 1, checkpoints) from None


def error(
  what: str, step: int, last: int, checkpoints: checkpoint.Checkpointer
) -> NotFiniteError:
  """The error of a step; a checkpoint after `last` would come to it again."""
  checkpoints.wait()  # for one that is still being written
  found = checkpoint.steps(checkpoints.directory)
  good = max((s for s in found if s <= last), default=None)
  kept = 'none' if good is None else f'step {good}'
  return NotFiniteError(
    f'{what} at step {step}; last good checkpoint: {kept} in '
    f'{checkpoints.directory}'
  )
