"""Batches of text: a pure function of (seed, first row, rows).

data = pipeline.load(config.data, cache_dir='/tmp/data')
for batch in data.train(seed=0, batch_size=64):
  ...
"""

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from absl import logging

from moe_jax import registry
from moe_jax.data import (
  bad as bad_lib,
  batches,
  chosen,
  documents as documents_lib,
  held_out,
  inventory,
  objectives,
  sources,
  streams,
  tokenizers,
)
from moe_jax.errors import UserError

DEFAULTS = {
  'name': 'python_stdlib',
  'dir': '',
  'cache': '',
  'domains': (),
  'weights': (),
  'max_bytes': 0,
  'max_bad': 0,
  'seq_len': 512,
  'tokenizer': 'bytes()',
  'objective': 'causal_lm()',
  'text_field': 'text',
  'train_split': 'train',
  'validation_split': 'validation',
  # These take the place of a corpus; see `tasks` and `problems`.
  'problem': '',
  'task': '',
  'task_file': '',
}


def load(
  config: Mapping[str, Any],
  *,
  cache_dir: str,
  allow_download: bool = False,
  validation_documents: str = 'all',
  validation_max_bytes: int = 0,
) -> 'Data':
  """Prepares and opens a corpus.

  Args:
    config: the `data` part of a config; fields and defaults are `DEFAULTS`.
      `domains` () is all of them; `weights` () gives each domain rows in
      proportion to its tokens, so that all text is seen equally often.
      `max_bytes` bounds the training text, each domain's by the same factor;
      whole documents spread over it, at least one; 0 does not. `max_bad` is
      how many records of both splits may be left out as they cannot be read.
      (`cache` is for the caller, who passes `cache_dir`.)
    cache_dir: where built corpora, indices and tokens are kept.
    allow_download: lets TFDS download what is not prepared.
    validation_documents: 'all' of each domain, or every second one, at 'even'
      or at 'odd' places of its list: what is tuned on one half is judged on the
      other. A domain with one document is in one half alone.
    validation_max_bytes: cap on each domain's validation bytes, 0 for none, of
      the half that is chosen: whole documents spread over it, at least one.

  Raises:
    ValueError: a bad field, or data that is not there; one line says which.
  """
  given = dict(config.items() if hasattr(config, 'items') else vars(config))
  for field in given:
    if field not in DEFAULTS:
      raise registry.unknown('field of data', field, DEFAULTS)
  config = {**DEFAULTS, **given}
  seq_len = config['seq_len']
  if not isinstance(seq_len, int) or seq_len < 1:
    raise UserError(f'data.seq_len={seq_len!r}: expected an integer above 0')
  for name, value in (
    ('data.max_bytes', config['max_bytes']),
    ('validation_max_bytes', validation_max_bytes),
  ):
    if not isinstance(value, int) or value < 0:
      raise UserError(f'{name}={value!r}: expected a whole number, 0 or more')
  bad = bad_lib.Bad(config['max_bad'])
  if validation_documents not in chosen.HALVES:
    raise registry.unknown(
      'half of validation', validation_documents, chosen.HALVES
    )
  tokenizer = tokenizers.build(config['tokenizer'])
  objective = objectives.build(config['objective'])
  objective.check(seq_len, len(tokenizer.sentinel_ids))
  name, data_dir = sources.locate(
    config['name'],
    directory=config['dir'],
    cache_dir=cache_dir,
    allow_download=allow_download,
    bad=bad,
  )
  text_field = config['text_field']
  splits = [config['train_split'], config['validation_split']]
  read = [
    sources.read(name, data_dir, split, text_field, bad.most)
    for split in splits
  ]
  tokenizer = tokenizer.fitted(
    documents_lib.spread(read[0], text_field, bad.most), cache_dir
  )
  opened = [
    documents_lib.open_documents(
      source,
      key=f'{name} {data_dir} {split}',
      cache_dir=cache_dir,
      tokenizer=tokenizer,
      text_field=text_field,
      max_bad=bad.most,
    )
    for split, source in zip(splits, read)
  ]
  for split, documents in zip(splits, opened):
    bad.add_all(split, *documents.bad)
  bad.warn()
  return Data(
    *opened,
    bad=bad,
    name=name,
    origin=sources.origin(name, read[0]),
    domains=_tuple(config['domains']),
    weights=_tuple(config['weights']),
    seq_len=seq_len,
    tokenizer=tokenizer,
    objective=objective,
    max_bytes=config['max_bytes'],
    validation_documents=validation_documents,
    validation_max_bytes=validation_max_bytes,
  )


class Data(batches.Batches):
  """A corpus as batches; made by `load`.

  Batches are dicts of int32 arrays [rows, length], see `objectives`.
  Validation is all of its documents once.

  Attributes:
    tokenizer: see `tokenizers`.
    domains: names of the domains, in the order of the weights.
    weights: the share of the training rows of each, summing to 1.
    documents: the validation documents, by domain.
    fingerprint: hash of all text read, the tokenizer and the domains.
    index_root: where indices are kept.
  """

  def __init__(
    self,
    train,
    validation,
    *,
    bad,
    name,
    origin,
    domains,
    weights,
    seq_len,
    tokenizer,
    objective,
    max_bytes,
    validation_documents,
    validation_max_bytes,
  ):
    self._train, self._validation = train, validation
    self.left_out, self._max_bytes = bad.count, max_bytes
    self.index_root = os.path.dirname(train.index_dir)
    self._name, self._origin, self._seq_len = name, origin, seq_len
    self.tokenizer, self._objective = tokenizer, objective
    self.domains = _check_domains(domains, train.domains)
    of_train, of_validation = (self._members(s) for s in (train, validation))
    whole = sum(int(train.bytes_N[m].sum()) for m in of_train)
    if max_bytes and max_bytes < whole:
      own = [int(train.bytes_N[m].sum()) * max_bytes // whole for m in of_train]
      of_train = [
        chosen.capped(m, train.bytes_N, max(n, 1))
        for m, n in zip(of_train, own)
      ]
    self._of_train = of_train
    length = objective.window(seq_len)
    self._streams = [
      streams.Stream(train, members, length, i)
      for i, members in enumerate(of_train)
    ]
    for d, stream in zip(self.domains, self._streams):
      if not stream.windows:
        raise UserError(
          f'domain {d!r} has {stream.tokens} training tokens, less than one '
          f'window of {length}: lower data.seq_len'
        )
    weights = _check_weights(weights, self.domains)
    weights = weights or [s.tokens for s in self._streams]
    self._shares = streams.shares(weights)
    self.weights = tuple(w / sum(weights) for w in weights)
    halves = [
      chosen.half(members, validation_documents, i)
      for i, members in enumerate(of_validation)
    ]
    kept = [
      chosen.capped(members, validation.bytes_N, validation_max_bytes)
      for members in halves
    ]
    self._held = held_out.Rows(
      validation,
      kept,
      self.domains,
      seq_len=seq_len,
      tokenizer=tokenizer,
      objective=objective,
    )
    self.documents = self._held.documents
    self.validation_rows = len(self._held)
    parts = (train.digest, validation.digest, tokenizer.key, *self.domains)
    if max_bytes and max_bytes < whole:
      parts += (str(max_bytes),)
    self.fingerprint = hashlib.sha256('\n'.join(parts).encode()).hexdigest()
    logging.info('%s', self.describe())

  def train_row(self, seed: int, row: int) -> batches.Row:
    """A window of the domain whose turn it is, under the objective."""
    domain, n = streams.place(row, self._shares)
    example = self._objective.example(
      self._streams[domain].window(seed, n),
      seq_len=self._seq_len,
      tokenizer=self.tokenizer,
      rng=np.random.default_rng([seed, 1, row]),
    )
    for unused in ('document', 'encoder_document'):  # but in validation
      example.pop(unused, None)
    return example

  def sources(self, seed: int, row: int) -> tuple[str, ...]:
    """'domain: document' of each document that a training row has a part of."""
    domain, n = streams.place(row, self._shares)
    window = self._streams[domain].window(seed, n)
    found = dict.fromkeys(window.document_N.tolist())
    return tuple(
      f'{self.domains[domain]}: {self._train.name(n)}' for n in found
    )

  def validation_row(self, row: int) -> batches.Row:
    """See `held_out.Rows.row`."""
    return self._held.row(row)

  def train_texts(self, domain: str) -> Iterator[bytes]:
    """The training documents of a domain, as they are stored."""
    members = self._of_train[self.domains.index(domain)]
    return self._train.texts(members)

  def validation_texts(self) -> Iterator[bytes]:
    """The bytes of `documents`."""
    return self._held.texts()

  def kept(self) -> dict[str, Any]:
    """Sizes and digests of all domains, chosen or not: see `inventory`."""
    splits = {'training': self._train, 'validation': self._validation}
    return {
      'tokenizer': self.tokenizer.key,
      'data.domains': list(self.domains),
      'data.max_bytes': self._max_bytes,
      'splits': {k: inventory.of_documents(v) for k, v in splits.items()},
    }

  def changes(self, kept) -> str:
    return inventory.changes(kept, self.kept(), self.index_root)

  def describe(self) -> str:
    """A few lines: sizes of the domains, tokens lost an epoch, versions."""
    left = bad_lib.note(self.left_out)
    both = self._train.bytes_N, self._validation.bytes_N
    if blank := sum(int((bytes_N == 0).sum()) for bytes_N in both):
      left += f'; documents without text: {blank}'
    lines = [f'{self._name}: data {self.fingerprint[:12]}{left}']
    for i, d in enumerate(self.domains):
      stream, members = self._streams[i], self._of_train[i]
      held = [doc.num_bytes for doc in self.documents if doc.domain == d]
      lines.append(
        f'  {d}: weight {self.weights[i]:.3f}; train {len(members)} documents, '
        f'{self._train.bytes_N[members].sum()} bytes, {stream.tokens} tokens '
        f'({stream.lost} lost an epoch); validation {len(held)} documents, '
        f'{sum(held)} bytes'
      )
    if self._origin:
      lines.append(f'  read from {self._origin}')
    return '\n'.join(lines)

  def _members(self, documents):
    """The documents of each chosen domain; those without text are left out."""
    if documents.domains != self._train.domains:
      raise UserError(
        f'domains differ: {self._train.domains} in training, '
        f'{documents.domains} in validation'
      )
    found = []
    for d in self.domains:
      of_d = documents.domain_N == documents.domains.index(d)
      found.append(np.flatnonzero(of_d & (documents.bytes_N > 0)))
      if not len(found[-1]):
        which = 'training' if documents is self._train else 'validation'
        raise UserError(f'domain {d!r} has no {which} documents')
    return found


def _tuple(value) -> tuple:
  """A flag for a tuple of one often arrives as the bare value."""
  return (value,) if isinstance(value, str | int | float) else tuple(value)


def _check_domains(domains, valid):
  for d in domains:
    if d not in valid:
      raise registry.unknown('domain', d, valid)
  if len(set(domains)) < len(domains):
    raise UserError(f'data.domains={domains} names a domain twice')
  return domains or valid


def _check_weights(weights, domains) -> list[float]:
  if weights and len(weights) != len(domains):
    raise UserError(
      f'data.weights={weights} has {len(weights)} weights for '
      f'{len(domains)} domains: {", ".join(domains)}'
    )
  for w in weights:
    if not (isinstance(w, int | float) and math.isfinite(w) and w >= 0):
      raise UserError(
        f'data.weights={weights}: {w!r} is not a finite number, 0 or more'
      )
  if weights and not sum(weights):
    raise UserError(f'data.weights={weights}: all are 0')
  return list(weights)
