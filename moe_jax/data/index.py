"""The index of a split's documents, as it lies in a cache; see `documents`.

Its manifest says that it is what was written; who wrote it, nobody says. So it
is held against the documents that there are, and its files against each other.
"""

import os
from typing import NamedTuple

import numpy as np

from moe_jax import json_files, npy_files
from moe_jax.errors import UserError

# Of each: a document has no fewer than this.
_LEAST = {'domain': 0, 'bytes': 0, 'tokens': 1}


class Index(NamedTuple):
  """What is known of N documents.

  Attributes:
    digest: of all of their bytes and domains.
    domain_N, bytes_N, tokens_N: of each, whole numbers.
    stored: all tokens end to end, memory-mapped, or None.
  """

  digest: str
  domain_N: np.ndarray
  bytes_N: np.ndarray
  tokens_N: np.ndarray
  stored: np.ndarray | None


def read(directory: str, N: int, domains: int, dtype: type) -> Index:
  """Opens the index of N documents of so many domains; tokens have a dtype.

  Raises:
    ValueError: it is that of no such documents; says what is wrong.
  """
  path = lambda name: os.path.join(directory, name)
  digest = json_files.read_bytes(path('digest.txt'), 64)
  found = {}
  for name, least in _LEAST.items():
    x_N = npy_files.read(path(f'{name}.npy'), 1)
    wrong = x_N.dtype.kind not in 'iu' or len(x_N) != N
    if wrong or (x_N < least).any():
      raise UserError(
        f'{path(name)}.npy is not that of {N} documents: {len(x_N)} of'
        f' {x_N.dtype}, the least {x_N.min(initial=0)}'
      )
    found[name] = x_N
  if (found['domain'] >= domains).any():
    raise UserError(f'{path("domain.npy")} names more than {domains} domains')
  stored = None
  if os.path.exists(path('ids.bin')):
    wanted = sum(map(int, found['tokens'])) * np.dtype(dtype).itemsize
    size = os.path.getsize(path('ids.bin'))
    if not size or size != wanted:
      raise UserError(
        f'{path("ids.bin")} has {size} bytes; its documents have {wanted}'
      )
    stored = np.memmap(path('ids.bin'), dtype, 'r')
  return Index(
    digest.decode(errors='replace'),
    *(found[name] for name in _LEAST),
    stored,
  )
