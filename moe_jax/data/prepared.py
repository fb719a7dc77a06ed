"""Prepared TFDS data sets, which someone else may have made.

TFDS imports the classes that features.json names, reads whatever its templates
say, and believes the number of records. Here a directory is looked through
before TFDS sees it, and what then cannot be read is one line.
"""

import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow_datasets as tfds
from array_record.python import array_record_module

from moe_jax import json_files
from moe_jax.data import bad as bad_lib
from moe_jax.errors import UserError

INFO, FEATURES = 'dataset_info.json', 'features.json'
# Classes of other modules may be code that came with the data.
_OURS = re.compile(r'tensorflow_datasets\.core\.features(\.\w+)+')
# What names a class, in TFDS's formats of today and of before.
_CLASS = ('pythonClassName', 'python_class_name', 'type')


def check(path: str) -> None:
  """Looks through a directory before TFDS reads it.

  Raises:
    ValueError: a feature's class that is none of TFDS's own, a template that
      leads elsewhere, or something in it that is no file.
  """
  with os.scandir(path) as entries:
    for e in entries:
      if not (e.is_file() or e.is_dir()):
        raise UserError(f'{e.path} is no regular file')
  info = json_files.read(os.path.join(path, INFO))
  for key, value in _pairs(info):
    if key.lower().replace('_', '').endswith('template') and (
      not isinstance(value, str) or '/' in value
    ):
      raise UserError(
        f'{path}/{INFO}: {key} is {value!r}; files beside it are wanted'
      )
  features = os.path.join(path, FEATURES)
  if not os.path.exists(features):
    return
  for key, value in _pairs(json_files.read(features)):
    # The older format may hold a text of JSON in its JSON.
    if key == 'content' and isinstance(value, str):
      raise UserError(f'{features}: content is a text; an object is wanted')
    if key in _CLASS and isinstance(value, str) and not _OURS.fullmatch(value):
      raise UserError(
        f'{features}: TFDS would import and run {value!r}; only classes of '
        'tensorflow_datasets.core.features are read'
      )


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
  """All keys with their values, wherever in a JSON value."""
  if isinstance(value, list):
    for v in value:
      yield from _pairs(v)
  elif isinstance(value, dict):
    for k, v in value.items():
      yield k, v
      yield from _pairs(v)


def info(path: str) -> tfds.core.DatasetInfo:
  """What TFDS reads of a checked directory.

  Raises:
    ValueError: as `check`, or TFDS cannot read it.
  """
  check(path)
  try:
    return tfds.builder_from_directory(path).info
  except Exception as e:  # of half a dozen kinds, by what is broken
    raise UserError(f'{path}: TFDS cannot read it: {_line(e)}') from e


class Source(Sequence):
  """The records of a split, as dicts; one that cannot be read is a ValueError.

  Attributes:
    dataset_info: TFDS's.
    lost: (first, stop, line) of records whose file is empty, gone or short.
  """

  def __init__(self, name: str, data_dir: str, split: str, max_bad: int = 0):
    """Opens it, and counts the records of its files.

    Raises:
      ValueError: TFDS cannot open it, or more than `max_bad` are lost.
      OSError: a file is there and may not be read, which is not its fault.
    """
    try:
      self._source = tfds.data_source(
        name, data_dir=data_dir, split=split, download=False
      )
      self.dataset_info = self._source.dataset_info
      self._files = self.dataset_info.splits[split].file_instructions
    except Exception as e:
      raise UserError(f'{name} {split}: TFDS cannot read it: {_line(e)}') from e
    self.lost = []
    if self.dataset_info.file_format.value == 'array_record':
      self._count(bad_lib.Bad(max_bad))

  def _count(self, bad: bad_lib.Bad) -> None:
    """Before memory is taken for as many records as someone says there are."""
    end = 0
    for f in self._files:
      start, end = end, end + f.take
      found, line = _there(str(f.filename), f.examples_in_shard)
      first = min(max(start + found - f.skip, start), end)
      if line and first < end:
        bad.add(line, end - first)
        self.lost.append((first, end, line))

  def __len__(self) -> int:
    return len(self._source)

  def where(self, n: int) -> str:
    """'FILE, record 3', from 0, of a record of the split."""
    for f in self._files:
      if n < f.take:
        return f'{f.filename}, record {f.skip + n}'
      n -= f.take
    raise IndexError(n)

  def __getitem__(self, n: int) -> dict[str, Any]:
    return self.__getitems__([n])[0]

  def __getitems__(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
    if not len(numbers):
      return []
    try:
      return self._source.__getitems__(numbers)
    except (OSError, MemoryError):
      raise
    except Exception as e:  # of half a dozen kinds, by what is broken
      where = self.where(numbers[0])
      if len(numbers) > 1:
        where = f'one of {len(numbers)} from {where}'
      raise UserError(f'{where} cannot be read: {_line(e)}') from e


def _there(path: str, wanted: int) -> tuple[int, str]:
  """How many records a file has, and what is wrong; '' where nothing is.

  Raises:
    ValueError: more than are wanted: it is not the file that is described.
    OSError: it may not be read.
  """
  try:
    # The library says the same of what is damaged and what is forbidden.
    open(path, 'rb').close()
    reader = array_record_module.ArrayRecordReader(path)
    found = reader.num_records()
    reader.close()
  except FileNotFoundError as e:
    return 0, f'{path} cannot be read: {e.strerror}'
  except (RuntimeError, ValueError) as e:
    return 0, f'{path} cannot be read: {_line(e)}'
  line = '' if found == wanted else f'{path} has {found} records, not {wanted}'
  if found > wanted:
    raise UserError(line)
  return found, line


def _line(error: Exception) -> str:
  lines = str(error).strip().splitlines() or ['']
  return f'{type(error).__name__}: {lines[0][:300]}'
