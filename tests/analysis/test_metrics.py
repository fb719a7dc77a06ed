"""What all metrics of routing share: one pass, names, nulls, refusals."""

import json

import numpy as np
import pytest

from moe_jax import registry
from moe_jax.analysis import metrics, nulls
from moe_jax.analysis.metrics import base
from moe_jax.errors import UserError
from tests.analysis import synthetic


@pytest.fixture
def record(tmp_path):
  return synthetic.write(tmp_path / 'one', **synthetic.small())


@pytest.fixture
def other(tmp_path):
  fields = synthetic.small() | {'expert': synthetic.small(seed=1)['expert']}
  return synthetic.write(tmp_path / 'two', cuts=(0.4,), **fields)


def test_every_file_is_a_metric():
  found = metrics.default() + metrics.default(pair=True)
  assert {f.removesuffix('()') for f in found} == set(
    registry.names(metrics.FAMILY)
  )


@pytest.mark.parametrize('pair', [False, True])
def test_cuts_make_no_difference_and_json_has_all(pair, tmp_path):
  found = []
  for i, cuts in enumerate([(), (0.3, 0.31, 0.8)]):
    paths = tmp_path / f'{i}', tmp_path / f'{i}_other'
    a = synthetic.write(paths[0], cuts=cuts, **synthetic.small())
    b = synthetic.write(paths[1], cuts=(0.5,), **synthetic.small())
    found.append(metrics.measure(a, other=b if pair else None))
  assert found[0] == found[1]
  assert json.loads(json.dumps(found[0], allow_nan=False)) == found[0]
  assert {k.partition('/')[0] + '()' for k in found[0]} == set(
    metrics.default(pair)
  )


@pytest.mark.parametrize('pair', [False, True])
def test_no_token_is_no_error(pair, tmp_path):
  fields = {k: v[:0] for k, v in synthetic.small().items()}
  schema = {'vocab': 9, 'domains': ('a',), 'documents': ((0, 'a'),)}
  empty = synthetic.write(tmp_path, schema=schema, **fields)
  metrics.measure(empty, other=empty if pair else None)


def test_what_is_refused(record, other, tmp_path):
  refusals = {
    'unknown method of analysis.metrics': ('satiation()',),
    'saturation compares two records; given: 1': ('saturation()',),
    'margins is given 2 times': ('margins()', 'margins(seed=1)'),
    "ids=\\('word',\\); valid": ("mutual_information(ids=('word',))",),
  }
  for message, specs in refusals.items():
    with pytest.raises(UserError, match=message):
      metrics.measure(record, specs)
  with pytest.raises(UserError, match='margins is of one record; given: 2'):
    metrics.measure(record, ('margins()',), other)
  schema = {'fingerprint': 'another'}
  third = synthetic.write(tmp_path, schema=schema, **synthetic.small())
  with pytest.raises(UserError, match='are of different texts'):
    metrics.measure(record, other=third)


def test_other_tokens_are_noticed_in_step(record, tmp_path):
  fields = synthetic.small() | {'token': np.arange(240) % 9}
  third = synthetic.write(tmp_path, **fields)
  with pytest.raises(UserError, match='have other tokens'):
    list(base.in_step(record, third))


def test_pairs_are_walked_side_by_side(record, other):
  walked = list(base.in_step(record, other))
  assert len(walked) == 5
  assert all(len(a) == len(b) for a, b in walked)
  token_n = np.concatenate([a.token for a, _ in walked])
  assert np.array_equal(token_n, synthetic.small()['token'])


def test_tally_counts_as_a_loop_does():
  rng = np.random.default_rng(0)
  expert = rng.integers(-1, 4, (50, 3, 2))
  row = rng.integers(-1, 6, 50)
  expected = np.zeros((6, 3, 4), int)
  for n, m, k in np.ndindex(*expert.shape):
    if row[n] >= 0 and expert[n, m, k] >= 0:
      expected[row[n], m, expert[n, m, k]] += 1
  found = base.tally(np.zeros((6, 3, 4), np.int32), row, expert)
  np.testing.assert_array_equal(found, expected)


def test_before_stops_at_documents_and_not_at_parts(record):
  last, rows = None, []
  for part in record.parts():
    rows.append(base.before(last, part, 'token'))
    last = base.ending(part)
  before, follows = (np.concatenate(v) for v in zip(*rows, strict=True))
  token = synthetic.small()['token']
  document = synthetic.small()['document']
  for n in range(1, len(token)):
    assert follows[n] == (document[n] == document[n - 1])
    assert before[n] == token[n - 1]
  assert not follows[0]


def test_a_sample_is_even_over_the_stream():
  hits = np.zeros(40)
  for seed in range(300):
    sample = nulls.Sample(8, np.random.default_rng(seed))
    for cut in np.split(np.arange(40), [1, 7, 30]):
      sample.add(cut)
    hits[sample.value_R] += 1
  assert len(set(sample.value_R)) == 8
  # Of 300 draws each token is in a fifth, give or take four deviations.
  assert abs(hits - 60).max() < 4 * np.sqrt(300 * 0.2 * 0.8)


def test_null_tables_have_as_many_of_each_id(monkeypatch):
  monkeypatch.setattr(nulls, '_STEP', 7)
  seen = np.array([0, 9, 0, 1, 14, 0])
  sample = np.array([[[0, 2]], [[1, -1]]])
  for table in nulls.tables(sample, seen, 3, draws=2, seed=0):
    first, second, third = table[:, 0].T
    assert np.array_equal(first + second, seen)
    assert np.array_equal(first, third)


def test_documents_are_drawn_again_within_their_domains():
  group = np.array([0, 0, 0, 1, 1])
  for times in base.resample(5, 20, seed=0, group_D=group):
    assert times[:3].sum() == 3
    assert times[3:].sum() == 2
