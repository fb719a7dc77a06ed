"""Going on with a run: whether, from which row, and with what other config."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from moe_jax import json_files, manifest
from moe_jax.errors import UserError
from moe_jax.runs import (
  checkpoint,
  config_history,
  configs,
  meta,
  quarantine,
  workdir as workdir_lib,
  writers,
)

# What a run that is over can still be given: all else is in its parameters.
_AGAIN = (
  'eval',
  'moe.eval_capacity_factor',
  'moe.decoder.eval_capacity_factor',
  'mesh',
  'cpu_devices',
  'data.dir',
  'data.cache',
  'data.task_file',
  'train.max_minutes',
  'train.max_step_minutes',
)
# What an evaluation gives a summary.
_SCORES = ('eval/', 'moe/eval_', 'probe/')


def finished(workdir: str, config: dict[str, Any]) -> dict[str, Any] | None:
  """The summary of a run that is over and had this very config, or None."""
  try:
    done = json_files.read(pathlib.Path(workdir) / 'summary.json')
    same = not workdir_lib.changes(workdir, config)
  except (OSError, ValueError):
    return None  # `workdir.prepare` says what is wrong
  steps = config['train']['steps']
  return done if same and done.get('steps') == steps else None


def damage(workdir: str) -> str:
  """What is wrong with a finished run's last checkpoint, at a glance.

  A start that has nothing to do reads no arrays: a file that is gone or cut is
  noticed, a flipped bit only by what reads the checkpoint (`evaluate`, another
  run). No checkpoint at all is none: they may have been taken away for space.
  """
  directory = pathlib.Path(workdir) / 'checkpoints'
  newest = max(checkpoint.steps(directory), default=None)
  try:
    step = directory / str(newest)
    fault = '' if newest is None else manifest.fault(step, digests=False)
  except OSError as e:
    fault = f'cannot be read, {e.strerror}'
  if not fault:
    return ''
  return (
    f'; its checkpoint of step {newest} is damaged ({fault}): without'
    ' summary.json the next start makes it again from the one before'
  )


def check(workdir: str, config: dict[str, Any]) -> dict[str, Any]:
  """What of a summary stays, where the evaluation alone is made again.

  Args:
    workdir: of a run that goes on, or of a fresh one.
    config: in which the run's may differ, as `workdir.prepare` allows.

  Raises:
    ValueError: the run has more steps than the config, or as many and was
      trained with other fields; or it has lost its checkpoints.
  """
  path = pathlib.Path(workdir)
  found = checkpoint.steps(path / 'checkpoints')
  found = meta.genuine(path / 'checkpoints', found)
  lost = '' if found else _lost(path)
  if lost:
    raise UserError(
      f'{workdir} has {lost}, but no checkpoint to go on from; --restart moves'
      ' all aside and begins at step 0'
    )
  newest = max(found, default=0)
  steps = config['train']['steps']
  if newest > steps:
    raise UserError(
      f'{workdir} is at step {newest}: train.steps={steps} would call its'
      f' parameters those of step {steps}; {newest} or more are wanted, or'
      ' another workdir'
    )
  if newest < steps:
    return {}
  late = [
    text
    for name, text in workdir_lib.changes(workdir, config).items()
    if not any(name == a or name.startswith(f'{a}.') for a in _AGAIN)
  ]
  if late:
    raise UserError(
      f'{workdir} is trained, all {steps} steps: {"; ".join(late)} comes too'
      ' late; more train.steps go on with it, and eval can change'
    )
  done = path / 'summary.json'
  try:
    kept = json_files.read(done) if done.exists() else {}
  except UserError as e:
    raise UserError(f'{e}; without this file the run is judged anew') from None
  if kept.get('steps') != steps:
    return {}
  return {k: v for k, v in kept.items() if not k.startswith(_SCORES)}


def _lost(path: pathlib.Path) -> str:
  """What says that a run without checkpoints had some; '' of one that died."""
  aside = path / 'checkpoints' / quarantine.FOLDER
  if aside.is_dir() and os.listdir(aside):
    return f'damaged checkpoints in {aside.parent.name}/{aside.name}/'
  if any(path.glob('summary*.json')):
    return 'the summary of a run that was over'
  # A save waits for the one before it, so the first is on disk by then.
  done = writers.last_step(path)
  if done:
    found = configs.flatten(workdir_lib.read_config(path))
    every = found.get('train.checkpoint_every')
    if type(every) is int and every and done > 2 * every:
      return f'metrics of {done} steps, a checkpoint every {every}'
  return ''


def row(data: Mapping[str, Any]) -> int:
  """The first row not trained on, by the data of a checkpoint.

  Rows are numbered through, so that another batch size neither skips nor
  repeats any. Checkpoints used to have the step alone.

  Raises:
    ValueError: a checkpoint that tells neither.
  """
  found, config = data.get('rows'), data.get('config')
  if 'rows' not in data and isinstance(config, Mapping):
    flat = configs.flatten(config_history.upgrade(config))
    found, size = data.get('data_step'), flat.get('train.batch_size')
    both = type(found) is int and type(size) is int
    found = found * size if both else None
  if type(found) is not int or found < 0:
    raise UserError('the checkpoint does not tell what it was trained on')
  return found
