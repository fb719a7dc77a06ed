"""Random access to the tokens of a split's documents.

One pass over a split finds every document's domain, bytes, tokens and a content
hash. The result is cached, so that a window of any epoch is found by a search,
with no further pass. A small split's tokens are kept too, memory-mapped; those
of a large one are made again from its text, read by index, when asked for. The
pass reads all of a split: name a slice, such as 'train[:1%]', of a huge one. It
also finds what cannot be read (see `bad`), which is no document then.

Opening the cache reads it once, to compare digests (see `derived`): at most the
tokens that are kept, 36 bytes a document and its name, in all some 0.3 s.
"""

import functools
import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence

import numpy as np
from absl import logging

from moe_jax.data import bad as bad_lib, derived, index as index_lib
from moe_jax.errors import UserError

TOKENS_KEPT = 1 << 28  # tokens; above it (0.5 GiB of bytes) they are not stored
_READ = 1024  # records read at once
_FORMAT = 2  # of the cache; part of its key


class Documents:
  """A split's documents, in the order in which they are stored.

  Attributes:
    index_dir: of the cache.
    domains: names of the domains.
    domain_N: domain of each document, int32.
    bytes_N: its bytes, int64.
    tokens_N: its tokens, EOS included, int64.
    hash_N: of its bytes, uint64.
    digest: hash of all domains' names and all documents' bytes.
    bad: how many records are left out, and the lines of some of them.
  """

  def __init__(self, source, index_dir, tokenizer, text_field, domains):
    self._source = source
    self._tokenizer = tokenizer
    self._text_field = text_field
    self.index_dir, self.domains = index_dir, domains
    found = index_lib.read(index_dir, len(source), domains, _dtype(tokenizer))
    self.digest, self.bad, self._stored = found.digest, found.bad, found.stored
    self._record_N, self.domain_N = found.record_N, found.domain_N
    self.bytes_N, self.tokens_N = found.bytes_N, found.tokens_N
    self.hash_N, self._names = found.hash_N, found.names
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
    return to_bytes(self._source[int(self._record_N[n])][self._text_field])

  def texts(self, numbers: Sequence[int]) -> Iterator[bytes]:
    """The bytes of some documents; ten times as fast as one after another."""
    for i in range(0, len(numbers), _READ):
      some = [int(self._record_N[n]) for n in numbers[i : i + _READ]]
      for record in self._source.__getitems__(some):
        yield to_bytes(record[self._text_field])

  def name(self, n: int) -> str:
    """The name of document n, or its number where it has none."""
    return self._names[n] if self._names else f'document {self._record_N[n]}'


def spread(
  source: Sequence, text_field: str, max_bad: int = 0
) -> Iterator[bytes]:
  """The text of each record once, such that the first few are of all parts.

  What cannot be read, `max_bad` at most, is passed over.
  """
  n, bad = len(source), bad_lib.Bad(max_bad)
  # Multiples of about the golden ratio; coprime, so that none comes twice.
  step = round(n * 0.618) or 1
  while math.gcd(step, n) > 1:
    step += 1
  for i in range(n):
    try:
      text = to_bytes(source[i * step % n][text_field])
    except UserError as e:
      bad.add(str(e))
    else:
      yield text


def to_bytes(text: bytes | str) -> bytes:
  """TFDS gives text as bytes, and its mocks as str."""
  return text.encode() if isinstance(text, str) else bytes(text)


def _dtype(tokenizer):
  return np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.int32


def open_documents(
  source: Sequence,
  *,
  key: str,
  cache_dir: str,
  tokenizer,
  text_field: str,
  max_bad: int = 0,
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
    max_bad: records that may be left out where the index is made; of one made
      before, `Documents.bad` says how many.

  Raises:
    ValueError: more than that, by the file and number of the record.
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
    lambda made: _index(
      source, made, tokenizer, text_field, domains, bad_lib.Bad(max_bad)
    ),
  )
  return Documents(source, index_dir, tokenizer, text_field, domains)


def _stamps(data_dir: str) -> list:
  """Names, sizes and times of the files: a prepared set may be made again."""
  with os.scandir(data_dir) as entries:
    return sorted(
      (e.name, e.stat().st_size, e.stat().st_mtime_ns) for e in entries
    )


def _domain(record, domains: Sequence[str]) -> int:
  return int(record['domain']) if len(domains) > 1 else 0


def _index(source, index_dir, tokenizer, text_field, domains, bad):
  digest = hashlib.sha256(json.dumps(domains).encode())
  size = len(source)
  columns = index_lib.COLUMNS.items()
  column_N = {name: np.zeros(size, t) for name, (t, _) in columns}
  path, names = os.path.join(index_dir, 'ids.bin'), []
  count = total = 0
  with open(path, 'wb') as f:
    for n, record in bad_lib.readable(source, bad):
      text, domain = to_bytes(record[text_field]), _domain(record, domains)
      if not 0 <= domain < len(domains):
        where = bad_lib.where(source, n)
        bad.add(f'{where} is of domain {domain}; there are {len(domains)}')
        continue
      digest.update(b'%d %d\n' % (domain, len(text)))
      digest.update(text)
      ids = np.append(tokenizer.encode(text), tokenizer.eos_id)
      hashed = hashlib.blake2b(text, digest_size=8).digest()
      row = n, domain, len(text), len(ids), int.from_bytes(hashed)
      for x_N, value in zip(column_N.values(), row, strict=True):
        x_N[count] = value
      count += 1
      if 'name' in record:
        names.append(to_bytes(record['name']).decode(errors='replace'))
      total += len(ids)
      if total <= TOKENS_KEPT:
        f.write(ids.astype(_dtype(tokenizer)).tobytes())
      if n % 100_000 == 99_999:
        logging.info('indexed %d of %d documents', n + 1, size)
  if total > TOKENS_KEPT or not total:
    os.remove(path)
  for name, x_N in column_N.items():
    np.save(os.path.join(index_dir, f'{name}.npy'), x_N[:count])
  kept = {
    'digest.txt': digest.hexdigest(),
    'domains.json': json.dumps({'domains': domains}),
    'bad.json': json.dumps({'count': bad.count, 'lines': bad.lines}),
  }
  if names:
    kept['names.json'] = json.dumps(names)
  for name, text in kept.items():
    with open(os.path.join(index_dir, name), 'w') as f:
      f.write(text)
