"""Experts by domain, and texts whose domain changes."""

import itertools
import math
import types

import numpy as np
import pytest

from moe_jax.training import domain_probes, evaluation, probes, session
from tests import saved, tiny
from tests.routers import test_hash


def test_information_is_adjusted_for_chance():
  """Against all tables that shuffling the labels gives."""
  table = np.array([[3, 1], [0, 2]])
  rows = [d for d, e in np.ndindex(2, 2) for _ in range(table[d, e])]
  columns = [e for d, e in np.ndindex(2, 2) for _ in range(table[d, e])]

  def information(rows, columns):
    n, total = len(rows), 0.0
    for d, e in np.ndindex(2, 2):
      k = sum(r == d and c == e for r, c in zip(rows, columns))
      if k:
        a, b = rows.count(d), list(columns).count(e)
        total += k / n * math.log(n * k / (a * b))
    return total

  every = [information(rows, p) for p in itertools.permutations(columns)]
  entropy = lambda p: -sum(q * math.log(q) for q in p)
  largest = (entropy([4 / 6, 2 / 6]) + entropy([3 / 6, 3 / 6])) / 2
  want = (information(rows, columns) - np.mean(every)) / (
    largest - np.mean(every)
  )
  assert domain_probes.adjusted(table) == pytest.approx(want)
  assert domain_probes.adjusted(np.diag([5, 7, 9])) == pytest.approx(1)
  even = np.full((3, 4), 50)
  assert abs(domain_probes.adjusted(even)) < 0.02
  assert domain_probes.adjusted(np.array([[3, 4, 0]])) == 0  # one domain


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """A session whose experts follow from the tokens' ids."""
  root = tmp_path_factory.mktemp('probes')
  config = tiny.config(
    **saved.corpus(root),
    **{
      'model.num_layers': 1,
      'moe.layers': 'all',
      'moe.router': 'hash()',
      'moe.balance': (),
      'eval.max_bytes': 600,
    },
  )
  own = session.make(config, str(root), splits=('eval',))
  return own, saved.state(config)


def test_experts_by_domain(made):
  """By the ids of each domain's tokens, in loops."""
  own, state = made
  load = {'a': np.zeros(4, int), 'b': np.zeros(4, int)}
  for i in range(own.data.validation_rows):
    row = own.data.validation_row(i)
    domain = own.data.documents[row['document'][0]].domain
    for t in np.flatnonzero(row['segments']):
      hashed = test_hash.mix(int(row['inputs'][t]) ^ test_hash.mix(0))
      load[domain][hashed % 4] += 1
  found = domain_probes.experts_by_domain()(own, state.params, state.balance)
  of_domains = {f'{d}/{k}' for d in 'ab' for k in ('effective', 'loss')}
  assert set(found) == of_domains | {'information', 'slope'}
  rise, run = (found[f'b/{k}'] - found[f'a/{k}'] for k in ('effective', 'loss'))
  assert found['slope'] == pytest.approx(rise / run)
  whole = evaluation.Evaluator(own)(state.params, state.balance)
  for d in 'ab':
    bits = found[f'{d}/loss'] / math.log(2)
    assert bits == pytest.approx(whole[f'eval/{d}/bits_per_byte'], rel=0.1)
  for domain, own_E in load.items():
    p_E = own_E / own_E.sum()
    want = math.exp(-sum(p * math.log(p) for p in p_E if p))
    assert found[f'{domain}/effective'] == pytest.approx(want)
  want = domain_probes.adjusted(np.stack([*load.values()]))
  assert found['information'] == pytest.approx(want, abs=1e-9)


def test_switching(made):
  """The pure rows' loss by hand; mixed rows have the same targets."""
  own, state = made
  pairs = list(domain_probes._switched(own, 2))
  length = own.config.data.seq_len
  for mixed, pure in pairs:
    half = slice(length // 2, None)
    assert mixed['loss'].tolist() == [0] * 8 + [1] * 8
    for k in pure:
      np.testing.assert_array_equal(mixed[k][half], pure[k][half])
  other = [(m['inputs'] != p['inputs'])[: length // 2].any() for m, p in pairs]
  assert np.mean(other) > 0.5
  four = next(domain_probes._switched(own, 4))[0]['loss'].tolist()
  assert four == [0] * 4 + [1] * 4 + [0] * 4 + [1] * 4
  found = domain_probes.switching()(own, state.params, state.balance)
  found = {k.removeprefix('2/'): v for k, v in found.items()}
  assert found['penalty'] == pytest.approx(found['mixed'] - found['pure'])
  assert found['mixed'] != found['pure']
  # Scored whole, the pure rows' halves are those of the validation set.
  whole = evaluation.Evaluator(own)(state.params, state.balance)
  assert found['pure'] == pytest.approx(whole['eval/loss'], rel=0.1)


def test_what_cannot_be_probed():
  with pytest.raises(ValueError, match='pieces=1; valid: from 2'):
    probes.build('switching(pieces=1)')
  dense = tiny.config(**{'moe.layers': 'none', 'eval.probes': ('switching()',)})
  probes.check(dense)
  empty = types.SimpleNamespace(
    data=types.SimpleNamespace(documents=[]),
    problem=types.SimpleNamespace(lacks=lambda *what: ValueError(what)),
  )
  with pytest.raises(ValueError, match='documents'):
    next(domain_probes._rows(empty))
