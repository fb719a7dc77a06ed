"""Two skills in one stream: facts that are remembered, sums worked out.

Half of the items are facts, drawn anew and again and again from those there
are, and half are sums modulo a number (`data.skills`). Validation asks for the
facts that training has, and of its sums half are of pairs that training never
has: with those alone, reasoning is told from remembering.

The loss is of the answers. Questions are drawn evenly, so that on all tokens a
constant that no model can be rid of would be two thirds of the loss, and its
gradients noise. Text is no such case: studies that train on all of its tokens
report the loss of answers beside it, and 'eval/loss' is that.
"""

import dataclasses
import hashlib
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from moe_jax import registry
from moe_jax.data import batches, intervals, skills
from moe_jax.problems import base, losses, tokens

# Names of the scores, by kind of item.
NAMES = 'facts', 'seen_sums', 'reasoning'


class Unit(NamedTuple):
  """The answers of a kind in a row of validation, as a document."""

  name: str
  domain: str
  answers: int


class Rows(batches.Batches):
  """A row is items one after the other, the last one cut."""

  def __init__(self, made: skills.Skills, key: str, length: int, held: int):
    self.skills, self.length, self.validation_rows = made, length, held
    self.fingerprint = key
    self.documents = []
    for row in range(held):
      kind_N = self._draws(1, row)[1]
      answers_N = kind_N[: (length + 1) // 3]  # of items that are whole
      self.documents += [
        Unit(f'row {row}, {name}', name, int((answers_N == kind).sum()))
        for kind, name in zip(skills.KINDS, NAMES)
      ]

  def train_row(self, seed, row):
    return self._row(0, seed, row)[0]

  def validation_row(self, row):
    made, kind_N = self._row(1, row)
    unit_L = np.repeat(row * len(NAMES) + kind_N, 3)[1 : self.length + 1]
    real = row < self.validation_rows
    return made | {
      'segments': np.full(self.length, real, np.int32),
      'document': np.where(real, unit_L, -1).astype(np.int32),
    }

  def _row(self, part, *seed):
    rng, kind_N = self._draws(part, *seed)
    id_N = self.skills.draw(rng, kind_N).ravel()[: self.length + 1]
    place_L = np.arange(self.length, dtype=np.int32)
    return {
      'inputs': id_N[:-1],
      'targets': id_N[1:],
      'positions': place_L,
      'segments': np.ones(self.length, np.int32),
      'loss': (place_L % 3 == 1).astype(np.int32),
    }, kind_N

  def _draws(self, part, *seed):
    """A row's generator, and the kinds of its items, the first draws."""
    rng = np.random.default_rng([part, *seed])
    sums, away = rng.integers(2, size=(2, -(-(self.length + 1) // 3)))
    # 'part' is 1 for validation, which alone has pairs that are held out.
    return rng, sums * (skills.SEEN + part * away)


@registry.register
@dataclasses.dataclass(frozen=True)
class TwoSkills(tokens.Tokens):
  """Scores are '<kind>_nats', an answer, and '<kind>_accuracy', of NAMES.

  Attributes:
    seq_len: tokens of a row, a third of them answers.
    facts: how many; the more, the more has to be remembered.
    symbols: of which two are a key.
    values: answers of facts.
    modulus: of sums; numbers are as many.
    held_out: share of the pairs of numbers.
    table: seed of facts and pairs; the run's own seed draws the rows.
    rows: of validation.
  """

  kinds = ('decoder',)
  loss_unit = 'cross-entropy, nats per answer'
  shown = (
    base.Score(
      'eval/facts_accuracy',
      'facts',
      unit='% of answers',
      better='higher',
      floor='eval/facts_chance',
      floor_label='chance',
    ),
    base.Score(
      'eval/reasoning_accuracy',
      'sums of held-out pairs',
      unit='% of answers',
      better='higher',
      floor='eval/sums_chance',
      floor_label='chance',
    ),
  )
  seq_len: int = 0
  facts: int = 2048
  symbols: int = 64
  values: int = 64
  modulus: int = 32
  held_out: float = 0.25
  table: int = 0
  rows: int = 256

  def ids(self):
    return self.modulus + self.values + self.symbols, self.name

  def example(self):
    names = 'inputs', 'positions', 'segments'
    return {name: np.ones(self.seq_len, np.int32) for name in names}

  def check(self, config):
    base.Problem.check(self, config)
    self._skills()  # or raises

  def differs(self, other):
    if isinstance(other, TwoSkills) and other._key() == self._key():
      return ''
    return f'its problem is {other.name}, here {self.name}, of other facts'

  def open(self, *, cache_dir, allow_download=False):
    named = f'{self.name} {self._key()} {self.seq_len} {self.rows}'
    key = hashlib.sha256(named.encode()).hexdigest()
    return Rows(self._skills(), key, self.seq_len, self.rows)

  def judge(self, out, batch, data):
    """As of documents; and how many answers of each are the likeliest."""
    right_BL = losses.counted(batch) & (out.argmax(-1) == batch['targets'])
    right = base.by_unit(
      right_BL.astype(jnp.float32), batch['document'], len(data.documents)
    )
    return tokens.of_documents(out, batch, data) | {'right': right}

  def by_document(self, nats_N, data):
    return _by_kind(nats_N, data, 'nats')

  def beside(self, sums, data):
    return _by_kind(sums['right'], data, 'accuracy')

  def floor(self, data):
    """'eval/facts_chance' and 'eval/sums_chance', shares; and their nats."""
    out = {}
    for name, answers in (('facts', self.values), ('sums', self.modulus)):
      out[f'eval/{name}_chance'] = 1 / answers
      out[f'eval/{name}_chance_nats'] = math.log(answers)
    return out

  def _skills(self):
    return skills.Skills(*self._key())

  def _key(self):
    return (
      *(self.facts, self.symbols, self.values),
      *(self.modulus, self.held_out, self.table),
    )


def _by_kind(sum_N, data, name: str) -> dict[str, float]:
  """A mean an answer of each kind, with its interval over rows."""
  answers_N = np.array([d.answers for d in data.documents])
  out = {}
  for kind, of in enumerate(NAMES):
    mine = slice(kind, None, len(NAMES))
    found = intervals.ratio(sum_N[mine], answers_N[mine])
    out |= found.named(f'eval/{of}_{name}')
  return out
