"""Passages of a routing record for the page's text view, packed into JSON.

What is kept of a record of any length is bounded, and the same record gives the
same passages, however its parts are cut. Letters: n tokens, M layers, K choices
of a token, E experts, D domains.
"""

import base64
import dataclasses
import heapq
import itertools
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from moe_jax.analysis import records

TOKENS = 20_000
PASSAGE = 400  # tokens of a passage, at most
BYTES = 6 << 20  # of all tokens in base64: with figures the page is below 10 MB
NO_LOSS, LOSS_STEP = 65_535, 1 / 2000  # up to 32.8 nats
# Unicode's categories of what is shown by its number: what has no glyph, and
# controls, among them those that turn the direction of the text around them.
_UNSEEN = {'Cc', 'Cf', 'Cs', 'Co', 'Cn', 'Zl', 'Zp'}
_INSIDE = '‧'  # a token that only goes on with a character


@dataclasses.dataclass(frozen=True)
class Sample:
  """Some of a record's text, and counts of all of it.

  Attributes:
    passages: parts of consecutive tokens of one document each; by turns of
      every domain.
    count_MDE: int64, choices of each expert in each domain.
    tokens_D: int64, tokens of each domain.
  """

  passages: tuple[records.Part, ...]
  count_MDE: np.ndarray
  tokens_D: np.ndarray


def sample(record: records.Record, most: int = TOKENS) -> Sample:
  """At most `most` tokens; fewer where a token has many choices.

  One pass. Domains have equal shares of the tokens, as far as their text goes.
  """
  schema = record.schema
  M, K = schema.shape
  D, E = len(schema.domains), max(schema.experts)
  count_MDE = np.zeros((M, D, E), np.int64)
  tokens_D = np.zeros(D, np.int64)
  # Base64 makes 4 characters of 3 bytes.
  most = min(most, BYTES * 3 // 4 // (8 + M * K * (_expert(E).itemsize + 3)))
  # Twice its share: some domains may have less.
  room = max(1, 2 * most // (D * PASSAGE))
  heaps: list[list] = [[] for _ in range(D)]
  parts = _counted(record.parts(), count_MDE, tokens_D)
  for i, passage in enumerate(_passages(parts)):
    heap = heaps[int(passage.domain[0])]
    # Multiples of the golden ratio, less what is whole, lie evenly, so that
    # those with the smallest are spread over the text. Endings come last.
    spread = i * 0x9E3779B1 % (1 << 32)
    entry = (len(passage) >= PASSAGE // 4, -spread, i, passage)
    (heapq.heappush if len(heap) < room else heapq.heappushpop)(heap, entry)
  turns = [[e[-1] for e in sorted(h, reverse=True)] for h in heaps]
  chosen, left = [], most
  for passage in [t[i] for i in range(room) for t in turns if i < len(t)]:
    if left:
      chosen.append(passage.cut(0, left))
      left -= len(chosen[-1])
  return Sample(tuple(chosen), count_MDE, tokens_D)


def pack(
  drawn: Sample,
  schema: records.Schema,
  decode: Callable | None = None,
  special: Mapping[int, str] | None = None,
) -> dict[str, Any]:
  """What the page's script reads.

  Args:
    drawn: from `sample`; of one passage at least.
    schema: of its record.
    decode: ids -> bytes, none of special ones; None shows tokens as numbers.
    special: names of special ids.

  Returns:
    JSON-able. Arrays are `[NumPy's type, base64]`, little-endian; `shown`, in
    its place, `token`, alone, `next` and `predicted` number `words`; weights
    times `scale` of their layer.
  """
  words: dict[str, int] = {}
  number = lambda word: words.setdefault(word, len(words))
  spell = _Spelling(decode, special or {})
  passages = [(p, spell.passage(p)) for p in drawn.passages]
  starts = [_line_start(p, s) for p, s in passages]
  passages = [
    (p.cut(k, len(p)), s[k:])
    for (p, s), k in zip(passages, starts, strict=True)
  ]
  joined = records.concatenate(p for p, _ in passages)
  scale_M = np.abs(joined.weight).max((0, 2), initial=0) / 32_767
  steps = np.clip(np.round(joined.loss / LOSS_STEP), 0, NO_LOSS - 1)
  labels = lambda ids: [number(spell.alone(int(i))) for i in ids]
  arrays = {
    'shown': np.array([number(w) for _, s in passages for w in s], '<u2'),
    'token': np.array(labels(joined.token), '<u2'),
    'next': np.array(labels(joined.next), '<u2'),
    'predicted': np.array(labels(joined.predicted), '<u2'),
    'loss': np.nan_to_num(steps, nan=NO_LOSS).astype('<u2'),
    # Nobody, -1, becomes the type's largest number.
    'expert': joined.expert.astype(_expert(max(schema.experts))),
    'weight': np.round(
      joined.weight / np.maximum(scale_M, 1e-30)[:, None]
    ).astype('<i2'),
    'cause': joined.cause.astype('u1'),
    'count': drawn.count_MDE.astype('<u4'),
  }
  return {
    'layers': list(schema.layers),
    'experts': list(schema.experts),
    'local': list(schema.local),
    'choices': schema.choices,
    'domains': list(schema.domains),
    'causes': list(records.CAUSES),
    'loss_step': LOSS_STEP,
    'scale': [float(f'{s:.6g}') for s in scale_M],
    'passages': [
      {
        'domain': int(p.domain[0]),
        'name': schema.documents[int(p.document[0])][1],
        'position': int(p.position[0]),
        'tokens': len(p),
      }
      for p, _ in passages
      if len(p)
    ],
    'words': list(words),
    'arrays': {k: [a.dtype.str, _base64(a)] for k, a in arrays.items()},
    'tokens': drawn.tokens_D.tolist(),
  }


def spelled(pieces: Sequence[bytes]) -> list[str]:
  """Of each piece the characters that begin in it, as they may be shown.

  Bytes that are no UTF-8 are `\\xff`, characters without a glyph `\\u202e`.
  """
  text = b''.join(pieces).decode('utf-8', 'surrogateescape')
  owner = [i for i, piece in enumerate(pieces) for _ in piece]
  shown, at = [''] * len(pieces), 0
  for c in text:
    broken = '\udc80' <= c <= '\udcff'
    shown[owner[at]] += f'\\x{ord(c) - 0xDC00:02x}' if broken else _visible(c)
    at += 1 if broken else len(c.encode())
  return [
    w or (_INSIDE if piece else '')
    for w, piece in zip(shown, pieces, strict=True)
  ]


class _Spelling:
  """Words of tokens, in their place or alone."""

  def __init__(self, decode: Callable | None, special: Mapping[int, str]):
    self._decode, self._special = decode, special
    self._bytes: dict[tuple[int, ...], bytes] = {}

  def passage(self, part: records.Part) -> list[str]:
    """What a token reads where it stands.

    Where a row of the model's begins it reads padding, which stands for what
    the token before it was to predict.
    """
    ids = part.token.tolist()
    if not self._decode:
      return [self.alone(i) + ' ' for i in ids]
    for k, expected in enumerate(part.next[:-1].tolist()):
      if not self._of(ids[k + 1]) and expected >= 0:
        ids[k + 1] = expected
    # Some tokenizers leave a space out where a text begins.
    pieces = [self._of(i) for i in ids[:1]]
    for before, i in itertools.pairwise(ids):
      both, first = self._of(before, i), self._of(before)
      whole = both.startswith(first)
      pieces.append(both[len(first) :] if whole else self._of(i))
    words = spelled(pieces)
    return [w or self.alone(i) for w, i in zip(words, ids, strict=True)]

  def alone(self, i: int) -> str:
    if i < 0:
      return ''
    piece = self._of(i) if self._decode else b''
    return spelled([piece])[0] if piece else f'⟨{self._special.get(i, i)}⟩'

  def _of(self, *ids: int) -> bytes:
    if ids not in self._bytes:
      self._bytes[ids] = bytes(self._decode(list(ids)))
    return self._bytes[ids]


def _visible(c: str) -> str:
  if c in ' \n\t' or unicodedata.category(c) not in _UNSEEN:
    return c
  return '\\r' if c == '\r' else f'\\u{ord(c):04x}'


def _counted(
  parts: Iterable[records.Part], count_MDE: np.ndarray, tokens_D: np.ndarray
) -> Iterator[records.Part]:
  """The parts; what has gone by is in the counts."""
  M, D, E = count_MDE.shape
  for part in parts:
    row_nM1 = (np.arange(M) * D + part.domain[:, None].astype(int))[..., None]
    cell_N = (row_nM1 * E + part.expert)[part.expert >= 0]
    count_MDE += np.bincount(cell_N, minlength=M * D * E).reshape(M, D, E)
    tokens_D += np.bincount(part.domain, minlength=D)
    yield part


def _passages(parts: Iterable[records.Part]) -> Iterator[records.Part]:
  """Documents in pieces of `PASSAGE` tokens, the last ones shorter."""
  rest = None
  for part in parts:
    part = records.concatenate([rest, part] if rest else [part])
    if not len(part):
      continue
    ends = np.flatnonzero(np.diff(part.document)) + 1
    firsts, ends = [0, *ends], [*ends, len(part)]
    cuts = [
      k
      for first, end in zip(firsts, ends, strict=True)
      for k in range(first, end, PASSAGE)
    ]
    # The last may go on in the next part.
    for k, end in itertools.pairwise(cuts):
      yield _copy(part.cut(k, end))
    rest = _copy(part.cut(cuts[-1], len(part)))
  if rest:
    yield rest


def _copy(part: records.Part) -> records.Part:
  """Of its own memory: a piece of an array keeps all of it."""
  return records.concatenate([part])


def _line_start(part: records.Part, words: Sequence[str]) -> int:
  """Where a passage begins: behind the end of a line or word that is near."""
  if part.position[0] == 0:
    return 0
  for end, near in ('\n', len(words) // 3), (' ', 40):
    for k, word in enumerate(words[:near]):
      if word.endswith(end):
        return k + 1
  return 0


def _expert(E: int) -> np.dtype:
  """The type of an expert's number, with room for nobody."""
  return np.dtype('u1' if E < 256 else '<u2')


def _base64(array: np.ndarray) -> str:
  return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
