"""What a metric of routing is: counts of tokens, then a function of them.

A metric goes over a record's parts once and keeps counts, sized by vocabulary,
experts, domains and documents and never by tokens; how parts are cut makes no
difference. K choices of a token are an edge each unless a metric says
otherwise: each counts 1, before drops, nobody (-1) not at all. Layers may
differ in experts; counts have room for the most of them, `width`, and an
expert that a layer lacks is never counted.

Plug-in numbers are biased, and by much: random routing looks specialised where
tokens are rare. So each stands beside its null: what a router with the same
loads gives that knows nothing of what is measured. Where a text's documents
are drawn, intervals are of a bootstrap over these, as tokens of a document are
alike.

Names of results: 'value', 'null' (its mean under the null), 'null_low' and
'null_high' (where 95 % of it is), 'low' and 'high' (95 % of the bootstrap);
before them a name and '_' where a metric has several. Each is by layer, unless
the metric says otherwise. Letters: n tokens of a part, M layers, K choices, E
experts (`width`), V ids, D documents or domains.
"""

import abc
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from moe_jax.analysis import records
from moe_jax.errors import UserError

_SALT = 0x6D657472
# Fields that metrics have by these names, and the least that goes.
_LEAST = {
  **{'draws': 2, 'sample': 2, 'seed': 0},
  **{'min_count': 1, 'devices': 2, 'cells': 1, 'largest': 0},
}


class Metric(abc.ABC):
  """A metric: a frozen dataclass, its fields the options.

  Attributes:
    pair: whether it compares two records of the same text, token by token. It
      then takes two schemas and two parts where others take one.
  """

  pair = False

  def __post_init__(self):
    for field, least in _LEAST.items():
      value = getattr(self, field, least)
      if value < least:
        said = f'{field}={value}; {least} or more are wanted'
        raise UserError(f'{name(self)}: {said}')
    self.check()

  def check(self) -> None:
    """Raises ValueError where a metric's own fields do not fit."""

  @abc.abstractmethod
  def start(self, *schemas: records.Schema) -> Any:
    """Counters at zero."""

  @abc.abstractmethod
  def add(self, state: Any, *parts: records.Part) -> Any:
    """The counters with a part's tokens; may write into `state`."""

  @abc.abstractmethod
  def result(self, state: Any, *schemas: records.Schema) -> dict[str, Any]:
    """Numbers, arrays and lists by name; nan where one is not defined.

    {'undefined': why} where the metric has no meaning for such a record.
    """


def generator(seed: int, *stream: int) -> np.random.Generator:
  """A generator of nulls, samples and bootstraps.

  Salted: with the numbers that made the data, of the same seed, a sample would
  be of like tokens alone.
  """
  return np.random.default_rng((_SALT, seed, *stream))


def name(metric: Metric) -> str:
  """The metric's name in results: its file's."""
  return type(metric).__module__.rpartition('.')[2]


def width(schema: records.Schema) -> int:
  """E, experts of the layer that has most."""
  return max(schema.experts)


def even(schema: records.Schema) -> np.ndarray:
  """f64 [M, E]: shares that a layer's experts have when all are equal."""
  E_M1 = np.asarray(schema.experts)[:, None]
  return (np.arange(width(schema)) < E_M1) / E_M1


def tally(
  count_RME: np.ndarray, row_n: np.ndarray, expert_nMK: np.ndarray
) -> np.ndarray:
  """Counts edges by layer and expert, and by what their token is.

  Args:
    count_RME: integers, C-contiguous, added to. Pages of rows that no token
      has cost no memory, where it was made by np.zeros.
    row_n: of each token, its number below R; -1 leaves it out.
    expert_nMK: -1 is nobody.

  Returns:
    count_RME.
  """
  _, M, E = count_RME.shape
  if not count_RME.flags.c_contiguous:  # else a copy would be added to
    raise ValueError('counts that are not contiguous')
  cell_nMK = (row_n.astype(np.int64)[:, None] * M + np.arange(M)) * E
  cell_nMK = cell_nMK[..., None] + expert_nMK
  real_nMK = (expert_nMK >= 0) & (row_n >= 0)[:, None, None]
  np.add.at(count_RME.reshape(-1), cell_nMK[real_nMK], 1)
  return count_RME


def cross(
  count_EE: np.ndarray, a_n: np.ndarray, b_n: np.ndarray, *row_n: np.ndarray
) -> None:
  """Counts tokens by two experts, and by what else is given before these.

  Args:
    count_EE: integers, added to; with further axes in front for `row_n`.
    a_n, b_n: of each token; left out where either is -1, nobody.
    *row_n: indices of the axes in front.
  """
  real_n = (a_n >= 0) & (b_n >= 0)
  np.add.at(count_EE, tuple(i[real_n] for i in (*row_n, a_n, b_n)), 1)


def before(
  last: dict[str, np.ndarray] | None, part: records.Part, field: str
) -> tuple[np.ndarray, np.ndarray]:
  """Of each token the field of the one before it, and whether there is one.

  Args:
    last: from `ending` of the part before, None at the start.
    part: tokens.
    field: of `Part`.

  Returns:
    [n, ...]; and bool [n], False where a document begins.
  """
  own, document_n = getattr(part, field), part.document
  first = own[:1] if last is None else last[field]
  first_document = np.array([-1]) if last is None else last['document']
  shifted = np.concatenate([first, own])[:-1]
  same_n = np.concatenate([first_document, document_n])[:-1] == document_n
  return shifted, same_n


def ending(part: records.Part) -> dict[str, np.ndarray]:
  """The part's last token, for `before` at the next one."""
  return {k: getattr(part, k)[-1:].copy() for k in records.FIELDS}


def halves(schema: records.Schema, part: records.Part) -> np.ndarray:
  """int [n], 0 or 1: what is fitted on one half is looked at on the other.

  Documents of even and of odd number; of a text that is one document, blocks of
  1,024 tokens.
  """
  if len(schema.documents) > 1:
    return part.document % 2
  return part.position // 1024 % 2


def resample(
  D: int, draws: int, seed: int, group_D: Sequence[int] | None = None
) -> Iterator[np.ndarray]:
  """Bootstraps of documents: int64 [D] each, how often each is drawn.

  Args:
    D: documents.
    draws: bootstraps.
    seed: of a `generator`.
    group_D: of each document, the group in which it is drawn again, as its
      domain; None: all are one.
  """
  rng = generator(seed)
  group_D = np.zeros(D, int) if group_D is None else np.asarray(group_D)
  members = [np.flatnonzero(group_D == g) for g in np.unique(group_D)]
  for _ in range(draws):
    times_D = np.zeros(D, np.int64)
    for m in members:
      times_D[m] = rng.multinomial(len(m), np.full(len(m), 1 / len(m)))
    yield times_D


def interval(draws: Sequence[Any], prefix: str = '') -> dict[str, np.ndarray]:
  """Where 95 % of the draws are: {prefix + 'low', prefix + 'high'}."""
  low, high = np.quantile(np.asarray(draws, float), [0.025, 0.975], axis=0)
  return {f'{prefix}low': low, f'{prefix}high': high}


def in_step(
  record: records.Record, other: records.Record
) -> Iterator[tuple[records.Part, records.Part]]:
  """Parts of two records of one text, cut so that tokens stand side by side.

  Raises:
    ValueError: their texts differ.
  """
  a, b = record.schema, other.schema
  if (a.fingerprint, a.tokens) != (b.fingerprint, b.tokens):
    raise UserError(
      f'{record.path} and {other.path} are of different texts: '
      f'{a.tokens} tokens, {a.fingerprint or "no fingerprint"}, and '
      f'{b.tokens}, {b.fingerprint or "no fingerprint"}'
    )
  ours, theirs = record.parts(), other.parts()
  mine, its, left = None, None, a.tokens
  while left:
    mine = next(p for p in ours if len(p)) if not mine else mine
    its = next(p for p in theirs if len(p)) if not its else its
    n = min(len(mine), len(its))
    pieces = mine.cut(0, n), its.cut(0, n)
    if not np.array_equal(pieces[0].token, pieces[1].token):
      raise UserError(f'{record.path} and {other.path} have other tokens')
    yield pieces
    mine, its = mine.cut(n, len(mine)), its.cut(n, len(its))
    left -= n
