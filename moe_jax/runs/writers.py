"""What a run writes down: metrics.jsonl and .csv, TensorBoard scalars, JSON.

The record of a run is `metrics.jsonl`, one JSON object a line, flushed as it is
written. JSON has no nan and no infinity: they are written as null.
"""

import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorboardX
from absl import logging

from moe_jax import json_files
from moe_jax.errors import UserError
from moe_jax.runs import columns, durable

METRICS = 'metrics.jsonl'


class Writer:
  """Appends metrics of one run; a context manager.

  On a resume, what was written after `start_step` is dropped, as those steps
  will run again: no line is lost or doubled if the metrics of a step are
  written before its checkpoint is. At `start_step` 0 nothing has been trained
  and all lines are dropped. In TensorBoard, which only adds files, a purge mark
  hides them.
  """

  def __init__(
    self,
    workdir: str | os.PathLike,
    *,
    start_step: int = 0,
    active: bool = True,
    owned: Callable[[], None] = lambda: None,
  ):
    """Opens the files.

    Args:
      workdir: directory of the run.
      start_step: step of the restored checkpoint; lines of later steps go.
      active: False makes an object that writes nothing (process 0 writes).
      owned: called before each line; raises ValueError where another process
        has taken the run over.
    """
    self._owned = owned
    self._lines = self._board = self._table = None
    if not active:
      return
    workdir = pathlib.Path(workdir)
    path = workdir / METRICS
    if path.exists():
      _cut(path, start_step)
    self._lines = path.open('a')
    self._table = columns.Table(path)
    board = workdir / 'tensorboard'
    board.mkdir(exist_ok=True)
    # The names hold seconds only, and a purge acts on the files that sort
    # before its own: number them.
    self._board = tensorboardX.SummaryWriter(
      str(board),
      purge_step=start_step + 1 if start_step else 0,
      filename_suffix=f'.{len(os.listdir(board)):04d}',
    )

  def write(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Writes one line, `{"step": step, **metrics}`, and its scalars.

    Args:
      step: optimizer steps done.
      metrics: numbers, strings, None, arrays (NumPy, JAX), lists or dicts of
        them; only finite scalars go to TensorBoard.

    Raises:
      ValueError: a metric named 'step', or a value of another type.
    """
    if self._lines is None:
      return
    if 'step' in metrics:
      raise UserError("a metric cannot be named 'step'")
    self._owned()
    line = {'step': int(step)} | {k: _plain(v, k) for k, v in metrics.items()}
    self._lines.write(json.dumps(line, allow_nan=False) + '\n')
    self._lines.flush()
    self._table.add(line)
    for k in metrics:
      if isinstance(line[k], int | float):
        self._board.add_scalar(k, line[k], int(step))
    self._board.flush()

  def sync(self) -> None:
    """Waits until the lines are on the disk."""
    if self._lines is not None:
      durable.sync(self._lines.name)

  def close(self) -> None:
    if self._lines is not None:
      self._lines.close()
      self._table.close()
      self._board.close()
      self._lines = None

  def __enter__(self) -> 'Writer':
    return self

  def __exit__(self, *exc) -> None:
    self.close()


def last(workdir: str | os.PathLike, name: str) -> dict[str, Any]:
  """The last line that has a metric; {} without one."""
  found = [row for row in _rows(workdir) if name in row]
  return found[-1] if found else {}


def last_step(workdir: str | os.PathLike) -> int:
  """Of the lines that can be read, where a kill may have left others."""
  path = pathlib.Path(workdir) / METRICS
  return max((n for n, _ in _read(path) if n), default=0)


def values(workdir: str | os.PathLike, name: str) -> list[float]:
  """The values of a metric in all lines, in order."""
  return [x[name] for x in _rows(workdir) if x.get(name) is not None]


def _rows(workdir: str | os.PathLike) -> list[dict[str, Any]]:
  path = pathlib.Path(workdir) / METRICS
  lines = json_files.lines(path) if path.exists() else []
  return [
    json_files.parse_object(line, f'{path}, line {i}')
    for i, line in enumerate(lines, 1)
  ]


def write_json(path: str | os.PathLike, obj: Any) -> None:
  """Writes a JSON file, sorted and indented, whole or not at all.

  Args:
    path: replaced atomically if it exists.
    obj: dicts, lists, tuples, numbers, strings, arrays; nan becomes null.

  Raises:
    ValueError: a value of another type.
  """
  path = pathlib.Path(path)
  text = json.dumps(_plain(obj, path.name), indent=2, sort_keys=True)
  durable.replace(path, text + '\n')


def _plain(x: Any, name: str) -> Any:
  """JSON's own types; nan and infinities become None."""
  if x is None or isinstance(x, bool | int | str):
    return x
  if isinstance(x, float):
    return x if math.isfinite(x) else None
  if isinstance(x, Mapping):
    return {str(k): _plain(v, f'{name}.{k}') for k, v in x.items()}
  if isinstance(x, list | tuple):
    return [_plain(v, name) for v in x]
  if hasattr(x, 'tolist'):  # NumPy and JAX arrays and scalars.
    # bfloat16's own tolist gives its scalars back.
    x = np.asarray(x)
    x = x.astype(np.float32) if x.dtype.kind == 'V' else x
    if x.dtype.kind in 'biuf':
      return _plain(x.tolist(), name)
  raise UserError(
    f'{name} is a {type(x).__name__}; wanted: numbers, strings, arrays of'
    ' numbers, lists or dicts of them'
  )


def _cut(path: pathlib.Path, start_step: int) -> None:
  """Drops lines after `start_step`, and the one that a kill left torn."""
  found = _read(path)
  kept = [f'{x}\n' for n, x in found if n is not None and n <= start_step]
  kept = kept if start_step else []
  torn = sum(n is None for n, _ in found)
  if torn:
    logging.warning('%s: dropped %s unreadable lines', path, torn)
  durable.replace(path, ''.join(kept))


def _read(path: pathlib.Path) -> list[tuple[int | None, str]]:
  """(step, line) of each line; None where it cannot be read."""
  found = []
  if path.exists():
    for line in json_files.lines(path):
      try:
        step = json_files.parse_object(line, str(path))['step']
        found.append((int(step), line))
      except (ValueError, TypeError, KeyError, ArithmeticError):
        found.append((None, line))
  return found
