"""meta.json of a checkpoint: its step, its leaves, what the run knew."""

import os
import pathlib
from typing import Any, NamedTuple

from moe_jax import json_files
from moe_jax.errors import UserError

FILE, KEEP, EXTRA = 'meta.json', 'keep', 'extra'


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


class Fate(NamedTuple):
  """What a step says of which steps are to stay.

  Attributes:
    kept: this one, for ever.
    extra: no schedule wrote it; it stays while it is the newest.
    best: the step that was the best so far, or None.
  """

  kept: bool
  extra: bool
  best: int | None


def fate(path: str | os.PathLike) -> Fate | None:
  """Of a step on disk; None where it cannot be read."""
  try:
    meta = json_files.read(pathlib.Path(path) / FILE)
  except (OSError, ValueError):
    return None
  data = meta.get('data')
  best = data.get('best') if isinstance(data, dict) else None
  best = best.get('step') if isinstance(best, dict) else None
  best = best if type(best) is int else None
  return Fate(bool(meta.get(KEEP)), bool(meta.get(EXTRA)), best)
