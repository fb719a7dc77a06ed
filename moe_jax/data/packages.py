"""The packages that this project needs as text, one domain a family.

Sources and documents of all distributions that moe_jax requires, of those that
these require, and so on, as they are installed; of each what its own record
lists. Docstrings stay where they are. The same wherever the same versions are
installed, and offline.
"""

import configparser
import importlib.metadata
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from absl import logging
from packaging import requirements, utils

from moe_jax.data import splitting, stdlib
from moe_jax.errors import UserError

PROJECT = 'moe_jax'
# By what uses what, each of some 4 MB or more; all else is `REST`.
FAMILIES = {
  'jax': 'jax jaxlib ml-dtypes opt-einsum',
  'flax': 'flax optax orbax-checkpoint treescope tensorstore grain etils '
  'array-record absl-py ml-collections dm-tree einops',
  'numpy': 'numpy',
  'scipy': 'scipy',
  'matplotlib': 'matplotlib contourpy cycler kiwisolver pillow pyparsing '
  'python-dateutil',
  'fonttools': 'fonttools',
  'pygments': 'pygments rich markdown-it-py mdurl',
  'pyarrow': 'pyarrow',
  'tensorflow_datasets': 'tensorflow-datasets tensorflow-metadata',
}
REST = 'other'
MIN_FAMILY = 1 << 20  # bytes; a smaller family is part of the rest
VALIDATION = 0.08
MIN_BYTES = stdlib.MIN_BYTES

_TEXT = frozenset(('.py', '.pyx', '.pxd', '.pxi', '.md', '.rst'))
_C = frozenset(('.c', '.cc', '.cpp', '.h', '.hh', '.hpp'))
_LEFT_OUT = re.compile(
  r'(?:^|_)tests?(?:_|\.|$)|^testdata$|^dummy_data$|^__pycache__$'
  # Copies of what others wrote.
  r'|^_?(?:vendor(?:ed)?|third_?party|extern(?:als?)?|bundled)$'
)
_GENERATED = re.compile(
  rb'(?i)auto-?generated|generated (?:automatically )?(?:by|from|on|using) '
  rb'|do not edit'
)
_NO_LETTERS = bytes(b for b in range(128) if not chr(b).isalpha())
# Less than this part of what is no white space: a table of numbers. Code has
# 0.7 or more.
_LETTERS = 0.6
_SHINGLE = 3  # lines
_COPIED = 0.5  # of a file's shingles stand in files before it: a near-duplicate


class Source(NamedTuple):
  """A file: its family, its name in its package, its bytes."""

  family: str
  name: str
  text: bytes


def distributions() -> dict[str, importlib.metadata.Distribution]:
  """What moe_jax needs, by normalised name, sorted; not moe_jax itself.

  Raises:
    ValueError: it is neither installed nor beside its setup.cfg.
  """
  found, seen = {}, set()
  wanted = [requirements.Requirement(r) for r in _required()]
  while wanted:
    r = wanted.pop()
    key = utils.canonicalize_name(r.name), frozenset(r.extras)
    if key in seen:
      continue
    seen.add(key)
    try:
      there = importlib.metadata.distribution(r.name)
    except importlib.metadata.PackageNotFoundError:
      continue  # what imports without it need not have it
    found[key[0]] = there
    for text in there.requires or ():
      r = requirements.Requirement(text)
      extras = [{'extra': e} for e in ('', *key[1])]
      if not r.marker or any(map(r.marker.evaluate, extras)):
        wanted.append(r)
  return dict(sorted(found.items()))


def _required() -> list[str]:
  """The project's own requirements, without those of its extras."""
  try:
    found = importlib.metadata.requires(PROJECT) or []
    return [r for r in found if 'extra ==' not in r]
  except importlib.metadata.PackageNotFoundError:
    pass  # on the path without being installed
  path = pathlib.Path(__file__).parents[2] / 'setup.cfg'
  config = configparser.ConfigParser()
  if not config.read(path) or config['metadata']['name'] != PROJECT:
    raise UserError(
      f"data.name='python_packages' reads what {PROJECT} requires, which is "
      'not installed: pip install it'
    )
  return config['options']['install_requires'].split('\n')[1:]


def files(
  found: Mapping[str, importlib.metadata.Distribution],
) -> list[Source]:
  """All files used, by family and name, before duplicates are taken out.

  Left out: tests, vendored copies, what is generated, tables of numbers.
  """
  family = {d: f for f, names in FAMILIES.items() for d in names.split()}
  sources = {}
  for name, distribution in found.items():
    if distribution.files is None:
      logging.warning('%s has no record of its files: left out', name)
    for path in distribution.files or ():
      parts = path.parts
      if path.suffix not in _TEXT | _C or parts[0] == '..':
        continue
      if any(map(_LEFT_OUT.search, parts)) or '.dist-info' in parts[0]:
        continue
      place = pathlib.Path(distribution.locate_file(path))
      text = place.read_bytes() if place.is_file() else b''
      if len(text) >= MIN_BYTES and not _GENERATED.search(text[:400]):
        strip = (
          stdlib.strip_c_legal if path.suffix in _C else stdlib.strip_legal
        )
        text = strip(text)
        if len(text) >= MIN_BYTES and not _table(text):
          source = Source(family.get(name, REST), path.as_posix(), text)
          sources[source.name] = source
  return _merge_small(sorted(sources.values()))


def versions(
  found: Mapping[str, importlib.metadata.Distribution],
) -> str:
  """'absl-py 2.3, jax 0.10.2, ...'."""
  return ', '.join(f'{name} {d.version}' for name, d in found.items())


def _table(text: bytes) -> bool:
  ink = text.translate(None, b' \t\r\n\f')
  return len(ink.translate(None, _NO_LETTERS)) < _LETTERS * len(ink)


def _merge_small(sources: list[Source]) -> list[Source]:
  sizes = dict.fromkeys((s.family for s in sources), 0)
  for s in sources:
    sizes[s.family] += len(s.text)
  small = {f for f, size in sizes.items() if size < MIN_FAMILY}
  return sorted(
    s._replace(family=REST) if s.family in small else s for s in sources
  )


def documents(sources: Iterable[Source]) -> list[splitting.Example]:
  """One a file, less those that copy files before them, in that order."""
  seen: set[int] = set()
  kept = []
  for family, name, text in sources:
    shingles = _shingles(text)
    if len(shingles & seen) <= _COPIED * len(shingles):
      seen |= shingles
      kept.append(splitting.Example(family, name, text, key=name))
  return kept


def _shingles(text: bytes) -> set[int]:
  """Hashes of all runs of three lines, without blank ones and indentation."""
  lines = [line for line in map(bytes.strip, text.split(b'\n')) if line]
  offset = [lines[i:] for i in range(_SHINGLE)]
  return set(map(hash, zip(*offset))) or {hash(tuple(lines))}
