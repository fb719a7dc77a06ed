"""Markov chains, each row's named by its first token: a positive control.

A model must hold `chains` tables; a mixture may give each expert some of them.
Rows are drawn without end: none is seen twice, and validation has draws of its
own from the same chains. The floor is the exact entropy (`data.markov`), which
no model beats but by chance.
"""

import dataclasses
import hashlib
import math
from typing import NamedTuple

import numpy as np

from moe_jax import registry
from moe_jax.data import batches, intervals, markov
from moe_jax.problems import base, tokens


class Row(NamedTuple):
  """A row of validation, as a document; its chain is its domain."""

  name: str
  domain: str


class Rows(batches.Batches):
  """Ids are symbols, then names of chains."""

  def __init__(self, chains: markov.Chains, key: str, length: int, held: int):
    self.chains, self.length, self.validation_rows = chains, length, held
    self.fingerprint = key
    self.documents = [
      Row(f'row {i}', f'chain {self._draws(1, i)[1]}') for i in range(held)
    ]

  def train_row(self, seed, row):
    return self._row(0, seed, row)

  def validation_row(self, row):
    real = row < self.validation_rows
    document = np.full(self.length, row if real else -1, np.int32)
    return self._row(1, row, real=real) | {'document': document}

  def _row(self, *seed, real=True):
    states = self.chains.start_CS.shape[1]
    rng, chain = self._draws(*seed)
    targets_L = self.chains.draw(rng, chain, self.length)
    inputs_L = np.append(np.int32(states + chain), targets_L[:-1])
    return {
      'inputs': inputs_L,
      'targets': targets_L,
      'positions': np.arange(self.length, dtype=np.int32),
      'segments': np.full(self.length, real, np.int32),
    }

  def _draws(self, *seed):
    """A row's generator, and its chain, the first draw."""
    rng = np.random.default_rng(seed)
    return rng, int(rng.integers(self.chains.start_CS.shape[0]))


@registry.register
@dataclasses.dataclass(frozen=True)
class MarkovChains(tokens.Tokens):
  """Scores are 'eval/nats_per_token' and 'eval/bits_per_token'.

  Attributes:
    seq_len: symbols of a row.
    chains, states: how many chains, over how many symbols.
    concentration: of the Dirichlet that rows of the matrices are drawn from.
    matrices: seed of the matrices; the run's own seed draws the rows.
    rows: of validation.
  """

  kinds = ('decoder',)
  shown = (
    base.Score(
      'eval/nats_per_token',
      'nats/token',
      unit='nats per token',
      floor='eval/entropy',
      floor_label='entropy',
    ),
  )
  seq_len: int = 0
  chains: int = 32
  states: int = 16
  concentration: float = 0.1
  matrices: int = 0
  rows: int = 512

  def ids(self):
    return self.states + self.chains, self.name

  def example(self):
    names = 'inputs', 'positions', 'segments'
    return {name: np.ones(self.seq_len, np.int32) for name in names}

  def check(self, config):
    base.Problem.check(self, config)
    self._chains()  # or raises

  def differs(self, other):
    if isinstance(other, MarkovChains) and other._key() == self._key():
      return ''
    return f'its problem is {other.name}, here {self.name}, of other chains'

  def open(self, *, cache_dir, allow_download=False):
    named = f'{self.name} {self._key()} {self.seq_len} {self.rows}'
    key = hashlib.sha256(named.encode()).hexdigest()
    return Rows(self._chains(), key, self.seq_len, self.rows)

  def judge(self, out, batch, data):
    return tokens.of_documents(out, batch, data)

  def by_document(self, nats_N, data):
    tokens_N = np.full(len(nats_N), data.length)
    out = {}
    for unit, size in (('nats', 1.0), ('bits', math.log(2))):
      found = intervals.ratio(nats_N / size, tokens_N)
      out |= found.named(f'eval/{unit}_per_token')
    return out

  def floor(self, data):
    """'eval/entropy', nats a token, and 'eval/entropy_bits'."""
    nats = data.chains.entropy(data.length)
    return {'eval/entropy': nats, 'eval/entropy_bits': nats / math.log(2)}

  def _chains(self):
    return markov.Chains(*self._key())

  def _key(self):
    return self.chains, self.states, self.concentration, self.matrices
