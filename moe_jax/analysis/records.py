"""A routing record on disk: who every token of a text went to, layer by layer.

A folder: `schema.json`, written last, and `part_00000.npz` ... of at most
`PART` tokens each. Parts are read one by one, so that no reader's memory grows
with the text. Only real tokens are in it; a document's stand in order, the
documents of a domain one after another.

Needs neither jax nor the model: figures and pages read records, too. Letters:
n tokens of a part, M MoE layers, K choices of a token.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from moe_jax import json_files
from moe_jax.errors import UserError

VERSION = 1
PART = 65_536  # tokens of a part, at most
SCHEMA = 'schema.json'
# `types.CAUSES` by number; types.py needs jax. A test holds them together.
CAUSES = ('kept', 'capacity', 'receiver', 'padding', 'unsent', 'local')
KEPT, UNSENT = 0, 4


@dataclasses.dataclass(frozen=True)
class Schema:
  """What is known of a record beside its tokens.

  Attributes:
    layers: number of each of the M MoE layers in its stack.
    experts: E of each layer, local ones among them.
    choices: K, the most edges of a token.
    vocab: V.
    domains: names.
    documents: (domain, name) of each, by the numbers that tokens have.
    names: of the layers; 'layer_3' unless given.
    local: zero-computation experts of each layer, the last of E.
    step: of the checkpoint.
    tokenizer: its call string.
    fingerprint: of the tokens; records of equal ones go in step.
    text: folder of the text; '' is what the run is validated on.
    max_bytes: of the text, as it was asked for; 0 is all.
    capacity_factor: as it was run; None is dropless.
    group_size: tokens of a routing group, as run.
    stack: 'decoder' or 'encoder'.
    top_score: whether margins are known.
    tokens: n over all parts.
    parts: n of each.
    version: of the format.
  """

  layers: tuple[int, ...]
  experts: tuple[int, ...]
  choices: int
  vocab: int
  domains: tuple[str, ...] = ('text',)
  documents: tuple[tuple[int, str], ...] = ((0, 'text'),)
  names: tuple[str, ...] = ()
  local: tuple[int, ...] = ()
  step: int = 0
  tokenizer: str = ''
  fingerprint: str = ''
  text: str = ''
  max_bytes: int = 0
  capacity_factor: float | None = None
  group_size: int = 0
  stack: str = 'decoder'
  top_score: bool = False
  tokens: int = 0
  parts: tuple[int, ...] = ()
  version: int = VERSION

  def __post_init__(self):
    fill = lambda name, value: object.__setattr__(self, name, value)
    if not self.names:
      fill('names', tuple(f'layer_{i}' for i in self.layers))
    if not self.local:
      fill('local', (0,) * len(self.layers))
    for name in ('names', 'local', 'experts'):
      if len(getattr(self, name)) != len(self.layers):
        raise UserError(
          f'record: {name}={getattr(self, name)} for {len(self.layers)} layers'
        )

  @property
  def shape(self) -> tuple[int, int]:
    """(M, K)."""
    return len(self.layers), self.choices


@dataclasses.dataclass(frozen=True)
class Part:
  """Tokens in order.

  Attributes:
    token: i32 [n], of the vocabulary.
    next: i32 [n], the true next one, what is to be predicted; -1 is none.
    predicted: i32 [n], the model's most likely next one.
    loss: f32 [n], nats for `next`, NaN where there is none.
    position: i32 [n], in its document.
    document: i32 [n], into `Schema.documents`.
    domain: i16 [n], into `Schema.domains`.
    expert: i16 [n, M, K], as the router ranked them, the best first; -1 is
      nobody. Before drops: `cause` tells of these.
    weight: f32 [n, M, K], combine weights, 0 at nobody.
    cause: i8 [n, M, K], into `CAUSES`.
    entropy: f32 [n, M], of the affinities in nats, NaN where there are none.
    margin: f32 [n, M], K-th affinity less the (K + 1)-th, NaN if not known.
  """

  token: np.ndarray
  next: np.ndarray
  predicted: np.ndarray
  loss: np.ndarray
  position: np.ndarray
  document: np.ndarray
  domain: np.ndarray
  expert: np.ndarray
  weight: np.ndarray
  cause: np.ndarray
  entropy: np.ndarray
  margin: np.ndarray

  def __len__(self) -> int:
    return len(self.token)

  def cut(self, start: int, stop: int) -> 'Part':
    """Its tokens from start to before stop."""
    return Part(**{k: getattr(self, k)[start:stop] for k in FIELDS})


# Type and axes of each array.
FIELDS = {
  'token': ('int32', 'n'),
  'next': ('int32', 'n'),
  'predicted': ('int32', 'n'),
  'loss': ('float32', 'n'),
  'position': ('int32', 'n'),
  'document': ('int32', 'n'),
  'domain': ('int16', 'n'),
  'expert': ('int16', 'nMK'),
  'weight': ('float32', 'nMK'),
  'cause': ('int8', 'nMK'),
  'entropy': ('float32', 'nM'),
  'margin': ('float32', 'nM'),
}


def part(expert: np.ndarray, **given: np.ndarray) -> Part:
  """A part of plain arrays, the wanted types made; what is not given is dull.

  Then tokens are 0 and of one document, nothing is next, weights are equal and
  all are kept.

  Args:
    expert: [n, M, K].
    **given: further fields of `Part`.
  """
  expert = np.asarray(expert)
  n, M, _ = expert.shape
  sent = expert >= 0
  dull = {
    'expert': expert,
    'next': np.full(n, -1),
    'loss': np.full(n, np.nan),
    'position': np.arange(n),
    'weight': sent / np.maximum(sent.sum(-1, keepdims=True), 1),
    'cause': np.where(sent, KEPT, UNSENT),
    'entropy': np.full((n, M), np.nan),
    'margin': np.full((n, M), np.nan),
  }
  zeros = 'token', 'predicted', 'document', 'domain'
  dull |= {k: np.zeros(n) for k in zeros} | given
  return Part(**{k: np.asarray(dull[k], FIELDS[k][0]) for k in FIELDS})


def concatenate(parts: Iterable[Part]) -> Part:
  """One part of several."""
  parts = list(parts)
  join = lambda k: np.concatenate([getattr(p, k) for p in parts])
  return Part(**{k: join(k) for k in FIELDS})


@dataclasses.dataclass(frozen=True)
class Record:
  """A record that was opened: `schema`, and its parts, read when asked for."""

  path: pathlib.Path
  schema: Schema

  @classmethod
  def open(cls, path: str | os.PathLike) -> 'Record':
    """The record in a folder.

    Raises:
      ValueError: there is none, it is broken, or of another version.
    """
    path = pathlib.Path(path)
    file = path / SCHEMA
    if not file.exists():
      raise UserError(f'{path} holds no routing record: it has no {SCHEMA}')
    return cls(path, _schema(json_files.read(file), file))

  def __len__(self) -> int:
    return self.schema.tokens

  def parts(self) -> Iterator[Part]:
    """The parts in order; a ValueError where one does not fit the schema."""
    for i in range(len(self.schema.parts)):
      yield self.part(i)

  def part(self, i: int) -> Part:
    """The i-th of `parts`."""
    n = self.schema.parts[i]
    return _read(self.path / name(i), n, *self.schema.shape)


def name(i: int) -> str:
  """The file of a part."""
  return f'part_{i:05d}.npz'


def write(
  path: str | os.PathLike, schema: Schema, parts: Iterable[Part]
) -> Record:
  """Writes a record, in place of one that is there.

  Args:
    path: the folder; its parent is made.
    schema: `tokens` and `parts` are filled in, and `fingerprint` where it is
      ''.
    parts: of any length, streamed; each is at once on disk.

  Raises:
    ValueError: a part of other types or shapes than the schema says.
  """
  path = pathlib.Path(path)
  path.mkdir(parents=True, exist_ok=True)
  (path / SCHEMA).unlink(missing_ok=True)  # first, as it is written last
  for old in path.glob('part_*.npz'):
    old.unlink()
  counts, digest = [], hashlib.sha256()
  for given in parts:
    for start in range(0, len(given), PART):
      piece = given.cut(start, start + PART)
      file = path / name(len(counts))
      _check({k: getattr(piece, k) for k in FIELDS}, file, *schema.shape)
      np.savez(file, **{k: getattr(piece, k) for k in FIELDS})
      counts.append(len(piece))
      # By token: the digest knows nothing of where parts are cut.
      named = piece.token, piece.next, piece.document
      digest.update(np.stack(named, 1).tobytes())
  schema = dataclasses.replace(
    schema,
    tokens=sum(counts),
    parts=tuple(counts),
    fingerprint=schema.fingerprint or digest.hexdigest(),
  )
  written = path / f'.{SCHEMA}'
  written.write_text(json.dumps(dataclasses.asdict(schema), indent=1))
  os.replace(written, path / SCHEMA)
  return Record(path, schema)


def _schema(found: dict[str, Any], file: pathlib.Path) -> Schema:
  if found.get('version') != VERSION:
    raise UserError(
      f'{file}: a record of version {found.get("version")!r}; read are those '
      f'of version {VERSION}: record again'
    )
  fields = {f.name for f in dataclasses.fields(Schema)}
  tuples = lambda v: tuple(map(tuples, v)) if isinstance(v, list) else v
  try:
    made = Schema(**{k: tuples(v) for k, v in found.items() if k in fields})
    fits = sum(made.parts) == made.tokens and max(made.parts, default=0) <= PART
  except TypeError as e:
    raise UserError(f'{file}: no schema of a record: {e}') from None
  if not fits:
    raise UserError(
      f'{file}: parts of {made.parts} tokens do not make {made.tokens}'
    )
  return made


def _read(file: pathlib.Path, n: int, M: int, K: int) -> Part:
  if not file.is_file():
    raise UserError(f'{file} is not there; the schema names it: record again')
  try:
    with np.load(file, allow_pickle=False) as arrays:
      found = {k: arrays[k] for k in FIELDS}
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as e:
    said = ' '.join(str(e).split())[:200]
    raise UserError(f'{file} is no part of a record: {said}') from None
  _check(found, file, M, K, n)
  return Part(**found)


def _check(arrays, file, M, K, n=None):
  """Raises ValueError where an array has another type or shape."""
  sizes = {'n': len(arrays['token']) if n is None else n, 'M': M, 'K': K}
  for field, (dtype, letters) in FIELDS.items():
    wanted, found = tuple(sizes[c] for c in letters), arrays[field]
    if (found.dtype.name, found.shape) != (dtype, wanted):
      raise UserError(
        f'{file}: {field} is {found.dtype} {found.shape}; the schema says '
        f'{dtype} {wanted}'
      )
