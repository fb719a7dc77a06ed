"""What a run remembers of its documents, and how those of today differ.

A run keeps sizes and digests by split and domain, which is little however much
text there is. Documents are named while the index they were read by is in the
cache still: an index of other files is another one, and the old one stays.
"""

import collections
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from moe_jax import manifest
from moe_jax.data import documents as documents_lib, index as index_lib

_SHOWN = 3  # names of a kind
_LONGEST = 700  # characters


def of_documents(documents: documents_lib.Documents) -> dict[str, Any]:
  """{'index': its name in the cache, 'domains': {domain: [...]}} of a split.

  Of a domain: how many documents, of how many bytes, and their digest.
  """
  domains = {}
  for i, name in enumerate(documents.domains):
    at_N = documents.domain_N == i
    digest = hashlib.sha256(documents.hash_N[at_N].tobytes()).hexdigest()
    size = int(documents.bytes_N[at_N].sum())
    domains[name] = [int(at_N.sum()), size, digest[:16]]
  index = os.path.basename(documents.index_dir)
  return {'index': index, 'domains': domains}


def of_examples(labels: Sequence[str], examples: Sequence) -> dict[str, Any]:
  """As `of_documents`, by label, of a task's examples; without an index."""
  texts = [[] for _ in labels]
  for e in examples:
    texts[e.label] += e.texts
  domains = {}
  for label, some in zip(labels, texts, strict=True):
    digest = hashlib.sha256(json.dumps([*map(len, some)]).encode())
    digest.update(b''.join(some))
    size = sum(map(len, some))
    domains[label] = [len(some), size, digest.hexdigest()[:16]]
  return {'index': '', 'domains': domains}


def changes(kept: Mapping[str, Any], now: Mapping[str, Any], root: str) -> str:
  """In what the data of a run differ from today's; '' where nothing is known.

  Args:
    kept, now: {'splits': {split: of_documents(...)}} and whatever else may
      differ, by its name. `kept` is out of a file, and may hold anything.
    root: of the indices, for names.
  """
  try:
    said = '; '.join(_changes(kept, now, root))
  except (TypeError, ValueError, KeyError, AttributeError):
    return ''
  return said if len(said) <= _LONGEST else f'{said[:_LONGEST]} ...'


def _changes(kept, now, root):
  found = [
    f'{name} {kept[name]!r}, now {value!r}'
    for name, value in now.items()
    if name != 'splits' and kept[name] != value
  ]
  for split, there in now['splits'].items():
    before = kept['splits'][split]
    old, new = before['domains'], there['domains']
    parts = [f'{d!r} is gone ({_size(old[d])})' for d in old if d not in new]
    parts += [f'{d!r} is new ({_size(new[d])})' for d in new if d not in old]
    changed = [d for d in old if d in new and old[d] != new[d]]
    listed = changed and [_listed(root, x['index']) for x in (before, there)]
    for d in changed:
      if all(listed):
        parts.append(f'{d!r}: {_compared(*(x.get(d, []) for x in listed))}')
      else:
        parts.append(f'{d!r} had {_size(old[d])}, now {_size(new[d])}')
    if parts:
      found.append(f'{split}: {", ".join(parts)}')
  return found


def _size(domain):
  count, size, digest = domain
  return f'{count} texts, {size} bytes, {str(digest)[:8]}'


def _listed(root: str, index: str) -> dict[str, list[tuple[str, int]]] | None:
  """(name, hash) of the documents of each domain; None where not to be had."""
  path = os.path.join(root, index)
  # It comes out of a file, and is to be the name of one.
  if not re.fullmatch('[0-9a-f]{32}', index) or not os.path.isdir(path):
    return None
  if manifest.fault(pathlib.Path(path)):
    return None
  found = index_lib.columns(path)
  out = collections.defaultdict(list)
  names = found['names'] or [f'document {n}' for n in found['record']]
  for n, (domain, hash_) in enumerate(zip(found['domain'], found['hash'])):
    out[found['domains'][domain]].append((names[n], int(hash_)))
  return out


def _compared(old, new) -> str:
  """What became of documents: by their bytes, then by their names."""
  gone, come = _without(old, new), _without(new, old)
  changed = [name for name in gone if name in set(come)]
  kinds = (
    ([n for n in gone if n not in changed], 'gone'),
    (changed, 'changed'),
    ([n for n in come if n not in changed], 'new'),
  )
  found = [
    f'{len(names)} {what} ({", ".join(map(repr, names[:_SHOWN]))}'
    f'{", ..." if len(names) > _SHOWN else ""})'
    for names, what in kinds
    if names
  ]
  return ' and '.join(found) or 'another order'


def _without(some, others) -> list[str]:
  """Names of those whose bytes the others do not have, as often."""
  there = collections.Counter(hash_ for _, hash_ in others)
  found = []
  for name, hash_ in some:
    if there[hash_]:
      there[hash_] -= 1
    else:
      found.append(name)
  return found
