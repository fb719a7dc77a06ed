"""Rows of training by number: which domain, which window, which tokens.

All is arithmetic on (seed, row), so any process can make any row.
"""

import functools
from collections.abc import Sequence

import numpy as np

from moe_jax.data import documents as documents_lib, objectives
from moe_jax.errors import UserError


class Stream:
  """One domain's documents as windows of equal length, epoch after epoch.

  An epoch lays the documents, each with its EOS, end to end in an order drawn
  for that epoch and cuts the result into windows, which come in a drawn order
  too (neighbouring windows are of one document, and would share a batch). The
  tail of an epoch that fills no window, `lost` tokens, is left out: another
  tail each epoch. An epoch's order takes 16 bytes a document and 8 a window.
  """

  def __init__(
    self,
    documents: documents_lib.Documents,
    members_N: np.ndarray,
    length: int,
    domain: int,
  ):
    """`members_N` are the documents of `domain`, `length` a window's tokens."""
    self._documents = documents
    self._members_N = members_N
    self._length = length
    self._domain = domain
    self.tokens = int(documents.tokens_N[members_N].sum())
    self.windows, self.lost = divmod(self.tokens, length)
    # Batches near the end of an epoch read from two.
    self._epoch = functools.lru_cache(maxsize=2)(self._draw)

  def window(self, seed: int, n: int) -> objectives.Window:
    """The n-th window of the stream, counted through all epochs."""
    epoch, i = divmod(n, self.windows)
    order_N, ends_N, window_W = self._epoch(seed, epoch)
    start = int(window_W[i]) * self._length
    return cut(self._documents, order_N, ends_N, start, start + self._length)

  def _draw(self, seed, epoch):
    rng = np.random.default_rng([seed, 0, self._domain, epoch])
    order_N = rng.permutation(self._members_N)
    ends_N = np.cumsum(self._documents.tokens_N[order_N])
    return order_N, ends_N, rng.permutation(self.windows)


def cut(
  documents: documents_lib.Documents,
  order_N: np.ndarray,
  ends_N: np.ndarray,
  start: int,
  stop: int,
) -> objectives.Window:
  """Tokens [start, stop) of documents laid end to end.

  Args:
    documents: where tokens are read from.
    order_N: the documents, in the order in which they lie.
    ends_N: where each ends.
    start: first token.
    stop: one past the last token, at most ends_N[-1].
  """
  tokens, of = [], []
  at = int(np.searchsorted(ends_N, start, 'right'))
  while start < stop:
    n = int(order_N[at])
    base = int(ends_N[at] - documents.tokens_N[n])
    end = min(stop, int(ends_N[at]))
    tokens.append(documents.tokens(n, start - base, end - base))
    of.append(np.full(end - start, n, np.int32))
    start, at = end, at + 1
  return objectives.Window(np.concatenate(tokens), np.concatenate(of))


def shares(weights: Sequence[float]) -> list[int]:
  """Weights as integers that sum to about 2**32, so that rows are exact."""
  total = sum(weights)
  return [max(round(w / total * 2**32), 1) if w else 0 for w in weights]


def place(row: int, share_D: Sequence[int]) -> tuple[int, int]:
  """(domain, its n-th row) of a row of the mixture.

  Each domain in turn takes its share of the rows that those before it left,
  evenly spaced; so the first R rows hold its share of R to within one row for
  each domain before it, whatever R is, and nothing needs to be remembered.
  """
  left = sum(share_D)
  for domain, share in enumerate(share_D):
    if not share:
      continue
    n = row * share // left
    if (row + 1) * share // left > n:
      return domain, n
    row -= n
    left -= share
  raise UserError('all weights are 0')
