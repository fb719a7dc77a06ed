"""meta.json of a checkpoint: its step, its leaves, what the run knew."""

import os
import pathlib
from typing import Any

from moe_jax import json_files
from moe_jax.errors import UserError

FILE, KEEP = 'meta.json', 'keep'


def read(path: pathlib.Path) -> dict[str, Any]:
  """{'step': int, 'data': dict, 'leaves': {name: [shape, dtype]}, ...}.

  Args:
    path: of the step.

  Raises:
    ValueError: another thing.
    OSError: it is not there, or cannot be read.
  """
  meta = json_files.read(path / FILE)
  leaves = meta.get('leaves')
  if not (
    type(meta.get('step')) is int
    and isinstance(meta.get('data'), dict)
    and isinstance(leaves, dict)
    and all(map(_is_spec, leaves.values()))
  ):
    raise UserError(f'{path / FILE} is not that of a checkpoint')
  return meta


def _is_spec(spec: Any) -> bool:
  if not (isinstance(spec, list) and len(spec) == 2):
    return False
  shape, dtype = spec
  whole = isinstance(shape, list) and all(type(n) is int for n in shape)
  return whole and isinstance(dtype, str)


def misnamed(path: pathlib.Path) -> str:
  """What is wrong with the name of a step that was copied; '' of others.

  Whole as it is, it would count as newer than it is, and good ones would go.
  One that cannot be read may be what it says.
  """
  try:
    step = read(path)['step']
  except (OSError, ValueError):
    return ''
  return '' if str(step) == path.name else f'it is a copy of step {step}'


def genuine(directory: pathlib.Path, steps: list[int]) -> list[int]:
  """The steps that are not `misnamed`."""
  return [s for s in steps if not misnamed(directory / str(s))]


def is_kept(path: str | os.PathLike) -> bool:
  """Whether a step is never deleted; one that cannot be read may be such."""
  try:
    return bool(json_files.read(pathlib.Path(path) / FILE).get(KEEP, False))
  except (OSError, ValueError):
    return True
