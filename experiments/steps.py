"""The flag of the checkpoint that is read."""

import os

from absl import flags

from moe_jax.errors import UserError

_STEP = flags.DEFINE_string(
  'step', None, "Checkpoint: its number, or 'best'; default the newest."
)


def chosen(workdir: str) -> int | None:
  """The step that the flag says, of a run; None is the newest."""
  from moe_jax.runs import checkpoint, pruning

  given = _STEP.value
  if given is None:
    return None
  if given == 'best':
    directory = os.path.join(workdir, 'checkpoints')
    return pruning.best(directory, checkpoint.steps(directory))
  if not given.isdecimal():
    raise UserError(f"--step={given}; a number or 'best' is wanted")
  return int(given)
