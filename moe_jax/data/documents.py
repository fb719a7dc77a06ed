"""Random access to the tokens of a split's documents.

One pass over a split finds every document's domain, bytes, tokens and a content
hash. The result is cached, so that a window of any epoch is found by a search,
with no further pass. A small split's tokens are kept too, memory-mapped; those
of a large one are made again from its text, read by index, when asked for. The
pass reads all of a split: name a slice, such as 'train[:1%]', of a huge one.

Opening the cache reads it once, to compare digests (see `derived`): at most the
tokens that are kept and 20 bytes a document, in all some 0.3 s.
"""

import functools
import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence

import numpy as np
from absl import logging

from moe_jax.data import derived, index as index_lib
from moe_jax.errors import UserError

TOKENS_KEPT = 1 << 28  # tokens; above it (0.5 GiB of bytes) they are not stored
_READ = 1024  # records read at once
_FORMAT = 1  # of the cache; part of its key


class Documents:
  """A split's documents, in the order in which they are stored.

  Attributes:
    domains: names of the domains.
    domain_N: domain of each document, int32.
    bytes_N: its bytes, int64.
    tokens_N: its tokens, EOS included, int64.
    digest: hash of all domains' names and all documents' bytes.
  """

  def __init__(self, source, index_dir, tokenizer, text_field, domains):
    self._source = source
    self._tokenizer = tokenizer
    self._text_field = text_field
    self.domains = domains
    found = index_lib.read(
      index_dir, len(source), len(domains), _dtype(tokenizer)
    )
    self.digest = found.digest
    self.domain_N, self.bytes_N = found.domain_N, found.bytes_N
    self.tokens_N, self._stored = found.tokens_N, found.stored
    self._start_N = np.cumsum(self.tokens_N) - self.tokens_N
    # Windows of one document are often read one after another.
    self._encoded = functools.lru_cache(maxsize=64)(self._encode)

  def tokens(self, n: int, start: int, stop: int) -> np.ndarray:
    """Tokens [start, stop) of document n, the last of all being EOS. int32."""
    if self._stored is None:
      return self._encoded(n)[start:stop]
    first = self._start_N[n]
    return self._stored[first + start : first + stop].astype(np.int32)

  def _encode(self, n):
    ids = self._tokenizer.encode(self.text(n))
    return np.append(ids, np.int32(self._tokenizer.eos_id))

  def text(self, n: int) -> bytes:
    """The bytes of document n."""
    return to_bytes(self._source[int(n)][self._text_field])

  def name(self, n: int) -> str:
    """The name of document n, or its number where it has none."""
    name = self._source[int(n)].get('name')
    return f'document {n}' if name is None else to_bytes(name).decode()


def spread(source: Sequence, text_field: str) -> Iterator[bytes]:
  """The text of each record once, such that the first few are of all parts."""
  n = len(source)
  # Multiples of about the golden ratio; coprime, so that none comes twice.
  step = round(n * 0.618) or 1
  while math.gcd(step, n) > 1:
    step += 1
  for i in range(n):
    yield to_bytes(source[i * step % n][text_field])


def to_bytes(text: bytes | str) -> bytes:
  """TFDS gives text as bytes, and its mocks as str."""
  return text.encode() if isinstance(text, str) else bytes(text)


def _dtype(tokenizer):
  return np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.int32


def open_documents(
  source: Sequence, *, key: str, cache_dir: str, tokenizer, text_field: str
) -> Documents:
  """Indexes a TFDS data source, or opens the index made before.

  Domains are the labels of a ClassLabel feature called `domain`; without one,
  there is a single domain, the dataset's name.

  Args:
    source: of records, with the `dataset_info` that TFDS gives it.
    key: names what is read: the dataset, its version and place, the split.
    cache_dir: where indices are kept.
    tokenizer: see `moe_jax.data.tokenizers`.
    text_field: the feature that holds the text.
  """
  info = source.dataset_info
  label = dict(info.features.items()).get('domain')
  domains = tuple(getattr(label, 'names', None) or (info.name,))
  parts = [_FORMAT, TOKENS_KEPT, key, text_field, tokenizer.key, domains]
  parts += _stamps(str(info.data_dir))
  name = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
  index_dir = os.path.join(cache_dir, 'index', name)
  derived.directory(
    index_dir,
    lambda made: _index(source, made, tokenizer, text_field, domains),
  )
  return Documents(source, index_dir, tokenizer, text_field, domains)


def _stamps(data_dir: str) -> list:
  """Names, sizes and times of the files: a prepared set may be made again."""
  with os.scandir(data_dir) as entries:
    return sorted(
      (e.name, e.stat().st_size, e.stat().st_mtime_ns) for e in entries
    )


def _domain(record, n: int, domains: Sequence[str]) -> int:
  domain = int(record['domain']) if len(domains) > 1 else 0
  if not 0 <= domain < len(domains):
    raise UserError(
      f'document {n} is of domain {domain}; there are {len(domains)}'
    )
  return domain


def _index(source, index_dir, tokenizer, text_field, domains):
  digest = hashlib.sha256(json.dumps(domains).encode())
  domain_N, bytes_N, tokens_N = (
    np.zeros(len(source), t) for t in ('i4', 'i8', 'i8')
  )
  path = os.path.join(index_dir, 'ids.bin')
  total = 0
  with open(path, 'wb') as f:
    for start in range(0, len(source), _READ):
      stop = min(start + _READ, len(source))
      for n, record in enumerate(
        source.__getitems__(range(start, stop)), start
      ):
        text = to_bytes(record[text_field])
        domain_N[n] = _domain(record, n, domains)
        digest.update(b'%d %d\n' % (domain_N[n], len(text)))
        digest.update(text)
        ids = np.append(tokenizer.encode(text), tokenizer.eos_id)
        bytes_N[n], tokens_N[n] = len(text), len(ids)
        total += len(ids)
        if total <= TOKENS_KEPT:
          f.write(ids.astype(_dtype(tokenizer)).tobytes())
      if start // _READ % 100 == 99:
        logging.info('indexed %d of %d documents', stop, len(source))
  if total > TOKENS_KEPT or not total:
    os.remove(path)
  for name, x in (
    ('domain', domain_N),
    ('bytes', bytes_N),
    ('tokens', tokens_N),
  ):
    np.save(os.path.join(index_dir, f'{name}.npy'), x)
  with open(os.path.join(index_dir, 'digest.txt'), 'w') as f:
    f.write(digest.hexdigest())
