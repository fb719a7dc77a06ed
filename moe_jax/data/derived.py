"""Directories of files that can be made again, checked whenever opened.

Training on a damaged cache looks like training. So each such directory has a
manifest of digests; where it does not match, the directory is made anew. What
was made before there were manifests is made anew, once.
"""

import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable

from absl import logging

from moe_jax import manifest
from moe_jax.errors import UserError


def directory(path: str, make: Callable[[str], None]) -> None:
  """Makes sure that a directory is there and as it was made.

  Several processes may do so at once; each reads what the first one made.

  Args:
    path: of the directory.
    make: fills an empty directory, always with the same files.

  Raises:
    ValueError: damaged, and it cannot be replaced.
  """
  there = os.path.isdir(path)
  fault = manifest.fault(pathlib.Path(path)) if there else 'it is not there'
  if not fault:
    return
  if there:
    logging.warning('%s is made anew: %s', path, fault)
  parent = os.path.dirname(path)
  os.makedirs(parent, exist_ok=True)
  try:
    made = _room(parent)
    try:
      make(made)
      manifest.write(pathlib.Path(made))
      _place(made, path, parent)
    finally:
      shutil.rmtree(os.path.dirname(made), ignore_errors=True)
  except OSError as e:
    if not there:
      raise
    raise UserError(f'{path} is damaged ({fault}), not replaced: {e}') from e


def _place(made: str, path: str, parent: str) -> None:
  """Renames `made` to `path`, unless another process was first."""
  while True:
    try:
      os.rename(made, path)
      return
    except OSError:
      if not os.path.isdir(path):
        raise
    if not manifest.fault(pathlib.Path(path)):
      return
    aside = _room(parent)
    try:
      os.rename(path, aside)
    except FileNotFoundError:
      pass  # the other process has moved it
    finally:
      shutil.rmtree(os.path.dirname(aside), ignore_errors=True)


def _room(parent: str) -> str:
  """An empty directory in one of its own, which alone is for our eyes only."""
  path = os.path.join(tempfile.mkdtemp(dir=parent, prefix='making_'), 'made')
  os.mkdir(path)
  return path
