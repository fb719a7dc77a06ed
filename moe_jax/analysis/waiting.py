"""Tokens wait on the disk, a domain each, until all of the text was seen."""

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from moe_jax.analysis import records

IN_MEMORY = 8192  # tokens of a domain


class Waiting:
  """Tokens of a stack as they come, to be handed on domain by domain.

  Attributes:
    domains, documents: as in `Schema`.
    choices: K, the most that a token was seen to use, at least 1.
    top_score: whether a margin was seen.
  """

  def __init__(self, path: pathlib.Path, data: Any):
    """`path` is made; tokens are of `data.documents`."""
    path.mkdir()
    names = [getattr(d, 'domain', 'text') for d in data.documents]
    self.domains = tuple(dict.fromkeys(names))
    self._domain_D = np.array([self.domains.index(n) for n in names], np.int16)
    self.documents = tuple(
      (int(i), d.name) for i, d in zip(self._domain_D, data.documents)
    )
    self.choices, self.top_score = 1, False
    self._path, self._tokens, self._files = path, 0, 0
    self._last = np.full((len(self.domains), 2), -1)  # document, position
    self._held: list[list[records.Part]] = [[] for _ in self.domains]
    self._written: list[list[pathlib.Path]] = [[] for _ in self.domains]

  def __len__(self) -> int:
    return self._tokens

  def add(self, arrays: dict[str, np.ndarray], first_row: int) -> None:
    """Arrays [B, L, ...] of `of_batch`, and the number of the first row."""
    real_BL, arrays = arrays['real'], dict(arrays)
    del arrays['real']
    rows_B1 = first_row + np.arange(len(real_BL))[:, None]
    document_BL = arrays['document']
    arrays['document'] = np.where(document_BL < 0, rows_B1, document_BL)
    found = {k: v[real_BL] for k, v in arrays.items()}
    domain_n = self._domain_D[found['document']]
    used_K = np.flatnonzero((found['expert'] >= 0).any((0, 1)))
    self.choices = max(self.choices, 1 + int(used_K.max(initial=0)))
    self.top_score |= bool(np.isfinite(found['margin']).any())
    self._tokens += len(domain_n)
    for d in np.unique(domain_n):
      mine = {k: v[domain_n == d] for k, v in found.items()}
      position_n = self._positions(d, mine['document'])
      domain = np.full(len(position_n), d)
      part = records.part(**mine, position=position_n, domain=domain)
      self._held[d].append(part)
      if sum(map(len, self._held[d])) >= IN_MEMORY:
        self._put(d)

  def _positions(self, d, document_n):
    """Places in the documents, which go on from batch to batch."""
    starts = np.flatnonzero(np.diff(document_n, prepend=-1))
    lengths = np.diff(starts, append=len(document_n))
    position_n = np.arange(len(document_n)) - np.repeat(starts, lengths)
    document, position = self._last[d]
    if document == document_n[0]:
      position_n[: lengths[0]] += position + 1
    self._last[d] = document_n[-1], position_n[-1]
    return position_n

  def _put(self, d):
    part = records.concatenate(self._held[d])
    file = self._path / f'{self._files}.npz'
    np.savez(file, **{k: getattr(part, k) for k in records.FIELDS})
    self._files += 1
    self._held[d] = []
    self._written[d].append(file)

  def parts(self) -> Iterator[records.Part]:
    """All tokens, by domain, with as many choices as are used."""
    held, count = [], 0
    for piece in self._pieces():
      cut = {k: getattr(piece, k) for k in records.FIELDS}
      for name in ('expert', 'weight', 'cause'):
        cut[name] = cut[name][:, :, : self.choices]
      held.append(records.Part(**cut))
      count += len(piece)
      if count >= records.PART:
        whole = records.concatenate(held)
        yield whole.cut(0, records.PART)
        held = [whole.cut(records.PART, count)]
        count = len(held[0])
    if count:
      yield records.concatenate(held)

  def _pieces(self):
    for d in range(len(self.domains)):
      for file in self._written[d]:
        with np.load(file) as arrays:
          yield records.Part(**{k: arrays[k] for k in records.FIELDS})
      yield from self._held[d]
