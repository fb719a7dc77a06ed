"""Train and validation documents that share no long run of bytes.

A model that has seen a passage in training predicts it in validation for the
wrong reason, and source trees repeat themselves: licences, boilerplate, whole
functions. Documents are split by a stable hash of a key, then every block of a
validation document holding a run of `RUN` bytes that also stands in a training
document of ANY domain is dropped.
"""

import hashlib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from moe_jax.errors import UserError

RUN = 64  # bytes; a power of two, since the hash doubles its length
_CHUNK = 1 << 16  # training bytes hashed at a time: their hashes fit a cache
_FILTER_BITS = 26  # a 64 MiB table spares most training runs a search
# Cuts join neighbours, which may share a run in turn. A document that still
# does after these rounds is boilerplate through and through: it goes whole.
_ROUNDS = 8
_BLANK = re.compile(rb'\n(?:[ \t\r\f]*\n)+')


class Example(NamedTuple):
  """A document: its domain, its name, its bytes and the key of its split."""

  domain: str
  name: str
  text: bytes
  key: str


def split(
  examples: Sequence[Example],
  *,
  fraction: Mapping[str, float],
  min_bytes: int,
) -> tuple[list[Example], list[Example]]:
  """Splits into (train, validation) documents with no shared run of 64 bytes.

  Args:
    examples: documents in the order in which they are to be stored.
    fraction: of the keys of each domain that goes to validation; one document
      at least. All documents with one key fall in the same split.
    min_bytes: a validation document left shorter than this is dropped.

  Raises:
    ValueError: a domain keeps no validation document, or has no other one.
  """
  places = [place(e.key) for e in examples]
  held = {e.key for e, p in zip(examples, places) if p < fraction[e.domain]}
  for d in fraction:
    of_d = [(p, e.key) for e, p in zip(examples, places) if e.domain == d]
    if not any(key in held for _, key in of_d):
      held.add(min(of_d)[1])
  train = [e for e in examples if e.key not in held]
  validation = [e for e in examples if e.key in held]
  texts = drop_shared([e.text for e in train], [e.text for e in validation])
  validation = [
    e._replace(text=t)
    for e, t in zip(validation, texts)
    if len(t) >= min_bytes and t.strip()
  ]
  for d in fraction:
    for part, of in (('training', train), ('validation', validation)):
      if not any(e.domain == d for e in of):
        raise UserError(
          f'domain {d!r} has no {part} document: it needs several documents '
          f'that do not repeat each other, and has '
          f'{sum(e.domain == d for e in examples)}'
        )
  return train, validation


def place(key: str) -> float:
  """A stable number in [0, 1) for a key."""
  digest = hashlib.sha256(key.encode()).digest()
  return int.from_bytes(digest[:8], 'big') / 2**64


def drop_shared(
  train: Iterable[bytes], validation: Sequence[bytes]
) -> list[bytes]:
  """Takes out the validation blocks that share a 64-byte run with training.

  Blocks are what blank lines separate. Taking one out joins its neighbours, so
  this repeats until no run is shared.

  Returns:
    The validation documents, in order, the emptied ones as b''.
  """
  train_N = np.frombuffer(b''.join(train), np.uint8)
  blocks = [(n, b) for n, d in enumerate(validation) for b in _blocks(d)]
  joins = None
  for round_ in range(_ROUNDS + 1):
    bad = _bad_blocks(train_N, blocks, joins)
    if not bad:
      break
    if round_ == _ROUNDS:
      whole = {blocks[i][0] for i in bad}
      blocks = [(n, b) for n, b in blocks if n not in whole]
    else:
      stay = [i for i in range(len(blocks)) if i not in bad]
      blocks = [blocks[i] for i in stay]
      joins = np.flatnonzero(np.diff(stay) > 1)
  kept = [[] for _ in validation]
  for n, block in blocks:
    kept[n].append(block)
  return [b''.join(k) for k in kept]


def _bad_blocks(train_N, blocks, joins) -> set[int]:
  """Indices of the blocks, given as (document, bytes), to take out.

  Args:
    train_N: all training bytes.
    blocks: of the validation documents.
    joins: blocks that have a new neighbour after them: no other run is looked
      for. None where all are new.
  """
  sizes = np.array([len(b) for _, b in blocks], int)
  new_N = np.ones(sizes.sum(), bool)
  if joins is not None:
    new_N[:] = False
    for end in np.cumsum(sizes)[joins]:
      new_N[max(end - RUN + 1, 0) : end] = True
  hit_N = _shared_runs(train_N, b''.join(b for _, b in blocks), new_N)
  of_document = np.bincount([n for n, _ in blocks], sizes).astype(int)
  for end in np.cumsum(of_document):  # a run across documents is no run
    hit_N[max(end - RUN + 1, 0) : end] = False
  # A run over two blocks goes with the shorter one: the boilerplate that
  # would otherwise eat its neighbours one by one.
  ends = np.cumsum(sizes)
  runs = np.flatnonzero(hit_N)
  first = np.searchsorted(ends, runs, 'right')
  last = np.searchsorted(ends, runs + RUN - 1, 'right')
  return set(np.where(sizes[first] < sizes[last], first, last).tolist())


def _blocks(document: bytes) -> list[bytes]:
  """Cuts after each group of blank lines; the parts join to the document."""
  cuts = [0, *(m.end() for m in _BLANK.finditer(document)), len(document)]
  return [document[a:b] for a, b in itertools.pairwise(cuts) if b > a]


def _shared_runs(train_N, text: bytes, new_N: np.ndarray) -> np.ndarray:
  """True where a new run of `text` starts that occurs in training. [len]."""
  start_N = np.zeros(len(text), bool)
  run_R = _hashes(np.frombuffer(text, np.uint8))
  at_R = np.flatnonzero(new_N[: len(run_R)])
  run_R = run_R[at_R]
  if not len(run_R):
    return start_N
  known_U, of_R = np.unique(run_R, return_inverse=True)
  shift = np.uint64(64 - _FILTER_BITS)
  maybe = np.zeros(1 << _FILTER_BITS, bool)
  maybe[known_U >> shift] = True
  found_U = np.zeros(len(known_U), bool)
  for i in range(0, len(train_N), _CHUNK):
    h = _hashes(train_N[i : i + _CHUNK + RUN - 1])
    h = h[maybe[h >> shift]]
    at = np.minimum(np.searchsorted(known_U, h), len(known_U) - 1)
    found_U[at[known_U[at] == h]] = True
  start_N[at_R] = found_U[of_R]
  return start_N


def _hashes(byte_N: np.ndarray) -> np.ndarray:
  """64-bit hashes of all runs of `RUN` bytes, by doubling. uint64 [N-RUN+1].

  Equal runs have equal hashes; a collision only costs a block.
  """
  h = byte_N.astype(np.uint64) + np.uint64(1)
  length = 1
  while length < RUN and len(h) > length:
    # Odd multipliers lose no bits; the shift brings high bits back down.
    h = h[:-length] * np.uint64(0x9E3779B97F4A7C15 + 2 * length) + h[length:]
    h ^= h >> np.uint64(29)
    length *= 2
  return h if length == RUN else h[:0]
