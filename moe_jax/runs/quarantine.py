"""Steps that are damaged, or that a run has passed over, and where they go."""

import pathlib
import time
from collections.abc import Callable

from moe_jax import manifest
from moe_jax.runs import durable, meta as meta_lib

FOLDER = '_quarantine'
# Seconds before a step that cannot be read is tried again.
_PAUSES = (0.5, 2.0, 5.0)


def fault(path: pathlib.Path) -> str:
  """`manifest.fault`, tried again where the step cannot be read."""
  for pause in _PAUSES:
    try:
      return manifest.fault(path) or meta_lib.misnamed(path)
    except OSError:
      time.sleep(pause)
  return manifest.fault(path) or meta_lib.misnamed(path)


def move(directory: pathlib.Path, step: int, owned: Callable[[], None]) -> str:
  """Moves a step aside; returns where to, or why not.

  Args:
    directory: of the steps.
    step: on disk.
    owned: raises ValueError where another process has taken the run over.
  """
  aside = directory / FOLDER / str(step)
  n = 0
  while aside.exists():
    n += 1
    aside = aside.with_name(f'{step}_{n}')
  try:
    owned()
    aside.parent.mkdir(exist_ok=True)
    durable.rename(directory / str(step), aside)
  except OSError as e:
    # Someone else's directory, or the run that owns it pruned the step.
    return f'not moved: {e.strerror}'
  return f'moved to {FOLDER}/{aside.name}'
