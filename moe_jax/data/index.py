"""The index of a split's documents, as it lies in a cache; see `documents`.

Its manifest says that it is what was written; who wrote it, nobody says. So it
is held against the records that there are, and its files against each other.
"""

import os
from typing import Any, NamedTuple

import numpy as np

from moe_jax import json_files, npy_files
from moe_jax.errors import UserError

# Of each document: column -> dtype, and what is the least.
COLUMNS = {
  'record': ('i8', 0),
  'domain': ('i4', 0),
  'bytes': ('i8', 0),
  'tokens': ('i8', 1),
  'hash': ('u8', 0),
}


class Index(NamedTuple):
  """What is known of N documents.

  Attributes:
    digest: of all of their bytes and domains.
    record_N, domain_N, bytes_N, tokens_N, hash_N: of each, whole numbers.
    names: of each, or () where they have none.
    bad: how many records are none, and the lines of some of them.
    stored: all tokens end to end, memory-mapped, or None.
  """

  digest: str
  record_N: np.ndarray
  domain_N: np.ndarray
  bytes_N: np.ndarray
  tokens_N: np.ndarray
  hash_N: np.ndarray
  names: list[str] | tuple[()]
  bad: tuple[int, list[str]]
  stored: np.ndarray | None


def columns(directory: str) -> dict[str, Any]:
  """The columns of an index, its 'names' (or ()), and its 'domains'.

  Raises:
    ValueError: they do not go with each other; says what is wrong.
  """
  path = lambda name: os.path.join(directory, name)
  domains = json_files.read(path('domains.json')).get('domains')
  _check_texts(path('domains.json'), domains)
  found: dict[str, Any] = {}
  for name, (_, least) in COLUMNS.items():
    x_N = npy_files.read(path(f'{name}.npy'), 1)
    N = len(found.get('record', x_N))
    wrong = x_N.dtype.kind not in 'iu' or len(x_N) != N
    if wrong or (x_N < least).any():
      raise UserError(
        f'{path(name)}.npy is not that of {N} documents: {len(x_N)} of'
        f' {x_N.dtype}, the least {x_N.min(initial=0)}'
      )
    found[name] = x_N
  if (found['domain'] >= len(domains)).any():
    raise UserError(
      f'{path("domain.npy")} names more than {len(domains)} domains'
    )
  names = ()
  if os.path.exists(path('names.json')):
    text = json_files.read_bytes(path('names.json'), 1 << 62)
    names = json_files.parse(text, path('names.json'))
    _check_texts(path('names.json'), names, len(found['record']))
  return found | {'names': names, 'domains': domains}


def _check_texts(path: str, texts: Any, count: int | None = None) -> None:
  fits = isinstance(texts, list) and all(isinstance(t, str) for t in texts)
  if not fits or len(texts) != (len(texts) if count is None else count):
    raise UserError(f'{path} is no list of {count or "all"} names')


def read(
  directory: str, records: int, domains: tuple[str, ...], dtype: type
) -> Index:
  """Opens the index of documents of so many records; tokens have a dtype.

  Raises:
    ValueError: it is that of no such documents; says what is wrong.
  """
  path = lambda name: os.path.join(directory, name)
  digest = json_files.read_bytes(path('digest.txt'), 64)
  found = columns(directory)
  if tuple(found['domains']) != domains:
    raise UserError(f'{path("domains.json")} has other domains than the data')
  if (found['record'] >= records).any():
    raise UserError(f'{path("record.npy")} names more than {records} records')
  left = json_files.read(path('bad.json'))
  bad = left.get('count'), left.get('lines')
  if type(bad[0]) is not int or bad[0] < 0:
    raise UserError(f'{path("bad.json")}: count={bad[0]!r} is no number')
  _check_texts(path('bad.json'), bad[1])
  stored = None
  if os.path.exists(path('ids.bin')):
    wanted = sum(map(int, found['tokens'])) * np.dtype(dtype).itemsize
    size = os.path.getsize(path('ids.bin'))
    if not size or size != wanted:
      raise UserError(
        f'{path("ids.bin")} has {size} bytes; its documents have {wanted}'
      )
    stored = np.memmap(path('ids.bin'), dtype, 'r')
  text = digest.decode(errors='replace')
  return Index(text, *(found[n] for n in COLUMNS), found['names'], bad, stored)
