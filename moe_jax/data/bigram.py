"""The floor that a model must beat: bits per byte of counted byte pairs.

p(b | a) = (n(a, b) + s p(b)) / (n(a) + s), p(b) = (n(b) + u) / (n + 257 u): a
bigram that falls back on the unigram where a was seldom seen, and that on the
uniform (MacKay and Peto, "A Hierarchical Dirichlet Language Model", Natural
Language Engineering 1(3), 1995). s and u are tuned on every tenth training
document with counts of the others, then the counts are taken of all.
"""

import itertools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from moe_jax.data import pipeline

_EDGE = 256  # the symbol before the first byte, and the one after the last
_SIZE = 257
_STRENGTHS = tuple(2.0**k for k in range(-6, 13, 2))  # s
_UNIGRAM = tuple(4.0**k for k in range(-4, 5, 2))  # u


class Floor(NamedTuple):
  """Bits of the validation documents, aligned with `Data.documents`.

  bits_N, float64, is of every byte and the end of a document; bytes_N, int64,
  counts no end. `smoothing` is the (s, u) of each domain.
  """

  bits_N: np.ndarray
  bytes_N: np.ndarray
  smoothing: dict[str, tuple[float, float]]


def floor(data: pipeline.Data) -> Floor:
  """Fits each domain's bigram on its training bytes, and only on those.

  Reads all training text of the domains: about 0.1 s a megabyte.
  """
  tables, smoothing = {}, {}
  for domain in data.domains:
    tables[domain], smoothing[domain] = fit(data.train_texts(domain))
  bits = [
    (pair_counts([text]) * tables[document.domain]).sum()
    for document, text in zip(data.documents, data.validation_texts())
  ]
  num_bytes = [document.num_bytes for document in data.documents]
  return Floor(np.array(bits), np.array(num_bytes), smoothing)


def fit(texts: Iterable[bytes]) -> tuple[np.ndarray, tuple[float, float]]:
  """Bits of each symbol (column) after each (row) [257, 257], and (s, u)."""
  fitted, held = np.zeros((2, _SIZE, _SIZE), np.int64)
  for i, text in enumerate(texts):
    (held if i % 10 == 0 else fitted)[...] += pair_counts([text])
  cost = lambda p: (held * bits(fitted, *p)).sum()
  smoothing = min(itertools.product(_STRENGTHS, _UNIGRAM), key=cost)
  return bits(fitted + held, *smoothing), smoothing


def pair_counts(texts: Iterable[bytes]) -> np.ndarray:
  """How often each symbol (column) follows each (row). int64 [257, 257]."""
  counts = np.zeros(_SIZE * _SIZE, np.int64)
  for text in texts:
    symbols = np.full(len(text) + 2, _EDGE, np.int64)
    symbols[1:-1] = np.frombuffer(text, np.uint8)
    pairs = symbols[:-1] * _SIZE + symbols[1:]
    counts += np.bincount(pairs, minlength=_SIZE * _SIZE)
  return counts.reshape(_SIZE, _SIZE)


def bits(counts: np.ndarray, s: float, u: float) -> np.ndarray:
  """-log2 p(column | row) under the module's formula. float64 [257, 257]."""
  next_B = counts.sum(0) + u
  p_B = next_B / next_B.sum()
  p_AB = (counts + s * p_B) / (counts.sum(1, keepdims=True) + s)
  return -np.log2(p_AB)
