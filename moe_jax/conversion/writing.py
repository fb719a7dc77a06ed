"""Leaves of ours -> a folder of safetensors, a tensor at a time.

The layout of the hub: shards of at most so many bytes, an index, config.json.
Headers are written by the format's description, since the library wants all
tensors of a file at once: 8 bytes of its length, JSON, the bytes of all tensors
(https://huggingface.co/docs/safetensors, "Format").
"""

import json
import math
import os
import pathlib
import shutil
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from moe_jax import registry
from moe_jax.conversion import folders, reading, tensors
from moe_jax.errors import UserError
from moe_jax.runs import durable

# Our names, and those of a file's header.
DTYPES = {'float32': 'F32', 'bfloat16': 'BF16', 'float16': 'F16'}
MAX_SHARD = 5 * 10**9  # bytes


def save(
  directory: folders.Path,
  table: Sequence[tensors.Tensor],
  part: Callable[[str], np.ndarray],
  config: Mapping[str, Any],
  *,
  dtype: str = 'float32',
  dtypes: Mapping[str, str] | None = None,
  copies: Mapping[str, str] | None = None,
  files: Mapping[str, bytes] | None = None,
  max_shard: int = MAX_SHARD,
) -> None:
  """Writes a folder that transformers reads; whole or not at all.

  Args:
    directory: new or empty; it appears by one rename.
    table: of a family.
    part: gives what a part of a tensor holds, as an array in our order.
    config: of config.json.
    dtype: of the tensors, a key of DTYPES; float32 loses nothing, the others
      round to nearest even. Those that have one of their own keep it.
    dtypes: by tensor, where it is another.
    copies: tensors to be stored beside them, and whose copies they are.
    files: others, by name.
    max_shard: bytes of a file's tensors; a larger tensor has its own.

  Raises:
    ValueError: `directory` exists and is not empty; no such dtype or size.
  """
  given = dtypes or {}
  for name in (dtype, *given.values()):
    if name not in DTYPES:
      raise registry.unknown('dtype', name, DTYPES)
  if max_shard < 1:
    raise UserError(f'max_shard={max_shard} must be at least 1 byte')
  by_name = {t.name: t for t in table}
  sources = {t.name: t for t in table} | {
    name: by_name[of] for name, of in (copies or {}).items()
  }
  typed = {n: t.dtype or given.get(n, dtype) for n, t in sources.items()}
  shards = _shards(sources, typed, max_shard)
  total = sum(_bytes(t, typed[n]) for n, t in sources.items())
  with Replaced(directory) as new:
    for file, names in shards.items():
      _write(new / file, {n: sources[n] for n in names}, typed, part)
    if len(shards) > 1:
      where = {n: file for file, names in shards.items() for n in names}
      index = {'metadata': {'total_size': total}, 'weight_map': where}
      _json(new / folders.INDEX, index)
    _json(new / 'config.json', dict(config))
    for name, content in (files or {}).items():
      (new / name).write_bytes(content)


class Replaced:
  """A folder beside `directory`, put in its place by one rename at the end.

  What is there must be empty; where the block fails, nothing is left. All
  processes write into the one that process 0 makes.
  """

  def __init__(self, directory: folders.Path):
    self.check(directory)
    self._to = pathlib.Path(directory).absolute()
    self._new = self._to.parent / f'.{self._to.name}.part'

  @staticmethod
  def check(directory: folders.Path) -> None:
    """Raises ValueError where something is there."""
    path = pathlib.Path(directory)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
      raise UserError(f'{directory} exists; a checkpoint needs a new directory')

  def __enter__(self) -> pathlib.Path:
    if jax.process_index() == 0:
      shutil.rmtree(self._new, ignore_errors=True)  # of one that was killed
      self._new.mkdir(parents=True)
    self._wait()
    return self._new

  def __exit__(self, kind, *exc):
    if kind is None:
      self._wait()
    if jax.process_index() != 0:
      return
    try:
      if kind is None:
        durable.sync_tree(self._new)
        # Only onto nothing or an empty directory: else it raises OSError.
        durable.rename(self._new, self._to)
    finally:
      shutil.rmtree(self._new, ignore_errors=True)

  def _wait(self):
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices(f'conversion {self._to.name}')


def whole(t: tensors.Tensor, part, dtype: str) -> np.ndarray:
  """A tensor of the checkpoint."""
  out = np.empty(t.shape, folders.DTYPES[DTYPES[dtype]])
  for p in t.parts:
    t.write(p, out, part(p))
  return out


def parts(
  leaves: Mapping[str, Any], own: reading.Fills
) -> Callable[[tensors.Part], np.ndarray]:
  """What gives a part of a tensor from our leaves, one at a time.

  Args:
    leaves: arrays by path, of NumPy or on this process's devices.
    own: of the table.
  """
  found = {
    (p.path, p.at): (path, at)
    for path, filled in own.items()
    for at, _, p in filled
  }

  def part(p: tensors.Part) -> np.ndarray:
    path, at = found[p.path, p.at]
    return np.asarray(leaves[path][at])

  return part


def _bytes(t: tensors.Tensor, dtype: str) -> int:
  itemsize = np.dtype(folders.DTYPES[DTYPES[dtype]]).itemsize
  return math.prod(t.shape) * itemsize


def _shards(sources, typed, most: int) -> dict[str, list[str]]:
  """{file: names}, in the table's order, as many as fit into each."""
  found: list[list[str]] = []
  size = 0
  for name, t in sources.items():
    own = _bytes(t, typed[name])
    if not found or size + own > most:
      found.append([])
      size = 0
    found[-1].append(name)
    size += own
  if len(found) == 1:
    return {folders.WEIGHTS: found[0]}
  stem, ending = os.path.splitext(folders.WEIGHTS)
  name = lambda i: f'{stem}-{i + 1:05}-of-{len(found):05}{ending}'
  return {name(i): names for i, names in enumerate(found)}


def _write(path: pathlib.Path, sources, typed, part) -> None:
  # Transformers refuses a file that does not say which framework's it is.
  header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
  # The library writes wide types first, so that all are aligned.
  names = sorted(sources, key=lambda n: typed[n] != 'float32')
  end = 0
  for name in names:
    start, end = end, end + _bytes(sources[name], typed[name])
    header[name] = {
      'dtype': DTYPES[typed[name]],
      'shape': sources[name].shape,
      'data_offsets': [start, end],
    }
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)
  with open(path, 'wb') as f:
    f.write(struct.pack('<Q', len(text)) + text)
    for name in names:
      value = whole(sources[name], part, typed[name])
      f.write(value.reshape(-1).view(np.uint8))


def _json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
  path.write_text(json.dumps(value, indent=2, sort_keys=True) + '\n')
