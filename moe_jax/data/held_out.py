"""Rows of text that is read once, in order: validation, or a whole folder."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from moe_jax.data import (
  bad as bad_lib,
  batches,
  chosen,
  documents as documents_lib,
  objectives,
  sources,
  streams,
)


class Document(NamedTuple):
  """A document that is read."""

  domain: str
  name: str
  num_bytes: int


class Rows:
  """Windows over each domain's documents laid end to end, domains in turn.

  Attributes:
    documents: by domain.
  """

  def __init__(
    self,
    source: documents_lib.Documents,
    kept: Sequence[np.ndarray],
    domains: Sequence[str],
    *,
    seq_len: int,
    tokenizer: Any,
    objective: Any,
  ):
    """`kept` are the numbers of each domain's documents, in order."""
    self._source, self._seq_len = source, seq_len
    self._tokenizer, self._objective = tokenizer, objective
    self._numbers_V = np.concatenate(kept)
    self.documents = [
      Document(d, source.name(n), int(source.bytes_N[n]))
      for d, members in zip(domains, kept, strict=True)
      for n in members
    ]
    self._rows = self._windows(kept, objective.window(seq_len))

  def __len__(self) -> int:
    return len(self._rows)

  def _windows(self, kept, length):
    """(documents of a domain, their first index, ends, start, stop) of rows.

    Domains take turns, each by its share, as in training: where tokens of a
    batch compete for seats, those of one domain alone would fight for the same.
    """
    rows, first, place = [], 0, []
    for members in kept:
      ends = np.cumsum(self._source.tokens_N[members])
      total = int(ends[-1]) if len(ends) else 0
      for start in range(0, total, length):
        stop = min(start + length, total)
        rows.append((members, first, ends, start, stop))
        place.append((start + stop) / total)
      first += len(members)
    return [rows[i] for i in np.argsort(place, kind='stable')]

  def row(self, row: int) -> batches.Row:
    """A window; a domain's last one is padded, and all past the last row.

    `document` [length] says which of `documents` a target belongs to, -1 on
    padding; that of an encoder's tokens is `encoder_document`.
    """
    window = objectives.Window(*np.zeros((2, 0), np.int32))
    if row < len(self._rows):
      members, first, ends, start, stop = self._rows[row]
      window = streams.cut(self._source, members, ends, start, stop)
      place = np.searchsorted(members, window.document_N).astype(np.int32)
      window = window._replace(document_N=first + place)
    return self._objective.example(
      window,
      seq_len=self._seq_len,
      tokenizer=self._tokenizer,
      rng=np.random.default_rng([0, 2, row]),  # the same noise at each visit
    )

  def texts(self) -> Iterator[bytes]:
    """The bytes of `documents`."""
    return self._source.texts(self._numbers_V)


class Folder(batches.HeldOut):
  """All text of a folder of .txt files, a domain each; none to train on.

  Attributes:
    documents: of all domains.
    tokenizer: that it is read with.
  """

  def __init__(
    self,
    config: Mapping[str, Any],
    directory: str,
    tokenizer: Any,
    *,
    cache_dir: str,
    max_bytes: int = 0,
  ):
    """Reads the folder, or what was made of it before.

    Args:
      config: the `data` part of a config, for `seq_len` and `objective`.
      directory: of the files.
      tokenizer: which has learned what it had to.
      cache_dir: where what is made of the files is kept.
      max_bytes: cap of the text, each domain's by the same; whole documents
        spread over it, at least one; 0 for none.

    Raises:
      ValueError: no such folder, or no text in it.
    """
    bad = bad_lib.Bad(0)
    objective = objectives.build(config.objective)
    objective.check(config.seq_len, len(tokenizer.sentinel_ids))
    name, root = sources.locate(
      'text_files',
      directory=directory,
      cache_dir=cache_dir,
      allow_download=False,
      bad=bad,
    )
    split = 'train+validation'
    source = documents_lib.open_documents(
      sources.read(name, root, split, 'text'),
      key=f'{name} {root} {split}',
      cache_dir=cache_dir,
      tokenizer=tokenizer,
      text_field='text',
    )
    members = [
      np.flatnonzero((source.domain_N == i) & (source.bytes_N > 0))
      for i in range(len(source.domains))
    ]
    each = max_bytes // len(members) or bool(max_bytes)
    kept = [chosen.capped(m, source.bytes_N, int(each)) for m in members]
    self._held = Rows(
      source,
      kept,
      source.domains,
      seq_len=config.seq_len,
      tokenizer=tokenizer,
      objective=objective,
    )
    self.tokenizer, self.documents = tokenizer, self._held.documents
    self.validation_rows = len(self._held)
    parts = source.digest, tokenizer.key, str(max_bytes)
    self.fingerprint = hashlib.sha256('\n'.join(parts).encode()).hexdigest()

  def validation_row(self, row):
    return self._held.row(row)
