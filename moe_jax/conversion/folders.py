"""A folder of safetensors, whole or sharded, read a slice at a time.

A file's header is checked by the safetensors library when it is opened. Slices
are read here: that library's NumPy reader lacks the float8 types.
"""

import dataclasses
import json
import math
import os
import pathlib
import struct
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from moe_jax import json_files
from moe_jax.conversion import tensors
from moe_jax.errors import UserError

Path = str | os.PathLike
# In the names of a file's header.
DTYPES: dict[str, Any] = {
  'F64': np.float64,
  'F32': np.float32,
  'BF16': ml_dtypes.bfloat16,
  'F16': np.float16,
  'F8_E4M3': ml_dtypes.float8_e4m3fn,
  'U8': np.uint8,
}
# What may be a weight; float32 holds them all.
STORED = ('F32', 'BF16', 'F16')
WEIGHTS = 'model.safetensors'
INDEX = f'{WEIGHTS}.index.json'
LISTED = 10


@dataclasses.dataclass(frozen=True)
class Stored:
  """A tensor of a file, or one that is computed from such.

  Attributes:
    shape: of it.
    dtype: of a file's header; 'F32' of one that is computed.
    read: gives a slice, by (start, stop) of each axis; what comes may be a view
      of the file, which goes with it.
  """

  shape: tuple[int, ...]
  dtype: str
  read: Callable[[tensors.Slices], np.ndarray]

  def all(self) -> np.ndarray:
    return self.read(tuple(slice(0, n) for n in self.shape))


def read_config(directory: Path) -> dict[str, Any]:
  """config.json of a checkpoint."""
  path = pathlib.Path(directory) / 'config.json'
  if not path.is_file():
    raise UserError(f'{directory} has no config.json')
  return json_files.read(path)


def opened(directory: Path) -> dict[str, Stored]:
  """The tensors of a folder by name.

  Raises:
    ValueError: no weights, or pickled ones; shards that are not there or lie
      elsewhere; a file that is none or cut short; a tensor that is stored
      twice, or not where the index says.
  """
  directory = pathlib.Path(directory)
  files, index = _files(directory)
  found, wrong, of = {}, [], {}
  for file in files:
    for name, stored in _read(file).items():
      if name in found:
        wrong.append(f'{name} is stored twice')
      found[name], of[name] = stored, file.name
  for name, file in index.items():
    if of.get(name) not in (None, file):
      wrong.append(f'{name} is in {of[name]}, not in {file}')
    elif name not in of:
      wrong.append(f'{name} is missing from {file}')
  refuse(f'{directory} is not such a checkpoint', wrong)
  return found


def refuse(what: str, wrong: list[str]) -> None:
  """ValueError that lists the first complaints, if there are any."""
  if wrong:
    more = len(wrong) - LISTED
    tail = f'; and {more} more' if more > 0 else ''
    raise UserError(f'{what}: {"; ".join(wrong[:LISTED])}{tail}')


def _files(directory: pathlib.Path) -> tuple[list[pathlib.Path], Mapping]:
  """The files of weights, a whole one before shards, and {tensor: shard}."""
  if (directory / WEIGHTS).is_file():
    return [directory / WEIGHTS], {}
  if (directory / INDEX).is_file():
    named = _shards(directory / INDEX)
    names = sorted(set(named.values()))
    lost = [n for n in names if not (directory / n).is_file()]
    refuse(f'{directory} lacks shards', lost)
    return [directory / n for n in names], named
  if any(directory.glob('pytorch_model*.bin')):
    raise UserError(
      f'{directory} holds pickled weights, and unpickling runs any code in '
      'them; where you trust them, convert with: python -c "import '
      'transformers as t; t.AutoModelForSeq2SeqLM.from_pretrained('
      f"{str(directory)!r}).save_pretrained('NEW_DIRECTORY')\" (of a decoder: "
      'AutoModelForCausalLM)'
    )
  raise UserError(f'{directory} has no {WEIGHTS}, whole or sharded')


def _shards(index: pathlib.Path) -> dict[str, str]:
  """{tensor: file}; the files are beside the index."""
  named = json_files.read(index).get('weight_map')
  if not isinstance(named, dict) or not named:
    raise UserError(f'{index} has no weight_map, {{tensor: file}}')
  files = {str(n): (n, tensor) for tensor, n in named.items()}
  wrong = [
    f'{n!r} is no file beside it, where {tensor} should be'
    for n, tensor in files.values()
    if not isinstance(n, str) or not n or n != os.path.basename(n) or '\0' in n
  ]
  refuse(str(index), wrong)
  return named


def _read(file: pathlib.Path) -> dict[str, Stored]:
  """The tensors of a file."""
  try:
    # Checks the header, and that it accounts for each byte of the file.
    with safetensors.safe_open(file, 'numpy'), open(file, 'rb') as f:
      (size,) = struct.unpack('<Q', f.read(8))
      header = json.loads(f.read(size))
  except safetensors.SafetensorError as e:
    raise UserError(f'cannot read {file}: {e}') from None
  header.pop('__metadata__', None)
  return {
    name: Stored(
      tuple(of['shape']),
      of['dtype'],
      _Reader(file, of['dtype'], 8 + size + of['data_offsets'][0], of['shape']),
    )
    for name, of in header.items()
  }


@dataclasses.dataclass(frozen=True)
class _Reader:
  """Slices of what lies in a file; only the pages of the slice are read."""

  file: pathlib.Path
  dtype: str
  offset: int
  shape: list[int]

  def __call__(self, slices: tensors.Slices) -> np.ndarray:
    dtype, shape = np.dtype(DTYPES[self.dtype]), tuple(self.shape)
    if not math.prod(shape):
      return np.empty(shape, dtype)[slices]
    mapped = np.memmap(self.file, dtype, 'r', self.offset, shape)
    # Without NumPy's own class, of which views stay in memory no shorter.
    return mapped.view(np.ndarray)[slices]
