"""Verdicts: intervals, rules and derived metrics by hand; what is kept."""

import json
import math

import pytest

from moe_jax.studies import index, results, verdicts
from tests.claims import claim as _claim, row as _row


def test_interval_is_the_textbooks():
  """t of 0.975 by degrees of freedom, as tables print it."""
  for d, t in (
    ([1.0, 3.0], 12.70620),
    ([0.1, 0.2, 0.4, 0.5, 0.8], 2.776445),
  ):
    n, mean = len(d), sum(d) / len(d)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in d) / (n - 1))
    half = t * deviation / math.sqrt(n)
    got = verdicts.interval(d)
    assert got == pytest.approx((mean, mean - half, mean + half), rel=1e-5)


def test_interval_without_variance_is_a_point():
  assert verdicts.interval([0.5] * 4) == (0.5, 0.5, 0.5)
  assert verdicts.interval([2]) == (2, 2, 2)


@pytest.mark.parametrize(
  ('direction', 'low', 'high', 'outcome'),
  [
    ('higher', 0.11, 0.2, 'reproduced'),
    ('higher', 0.1, 0.2, 'inconclusive'),  # beyond it, not at it
    ('higher', -0.2, -0.11, 'contradicted'),
    ('higher', -0.2, -0.1, 'inconclusive'),
    ('higher', -0.05, 0.05, 'inconclusive'),
    ('lower', -0.2, -0.11, 'reproduced'),
    ('lower', -0.2, -0.1, 'inconclusive'),
    ('lower', 0.11, 0.2, 'contradicted'),
    ('equal', -0.1, 0.1, 'reproduced'),
    ('equal', -0.1, 0.11, 'inconclusive'),
    ('equal', 0.1, 0.2, 'inconclusive'),
    ('equal', 0.11, 0.2, 'contradicted'),
    ('equal', -0.2, -0.11, 'contradicted'),
  ],
)
def test_rule_at_its_edges(direction, low, high, outcome):
  assert verdicts.decide(direction, 0.1, low, high) == outcome


def test_no_effect_that_counts_is_above_zero():
  assert verdicts.decide('higher', 0.0, 0.0, 0.0) == 'inconclusive'
  assert verdicts.decide('higher', 0.0, 1e-9, 1.0) == 'reproduced'


def test_pairs_are_of_the_same_seed():
  """Noise of the seed that both arms share leaves the difference sharp."""
  rows = [
    *(_row('a', s, loss=10.0 * s) for s in range(4)),
    *(_row('b', s, loss=10.0 * s + 1 + 0.01 * s) for s in (3, 2, 1, 0)),
    _row('b', 9, loss=0.0),  # without a partner
    {'arm': 'a', 'seed': 9, 'status': 'diverged'},
  ]
  v = verdicts.judge(_claim(), rows)
  assert (v.outcome, v.pairs) == ('reproduced', 4)
  assert v.difference == pytest.approx(-1.015)
  # By hand: sd of 0, .01, .02, .03 is 0.0129099; t(3) = 3.18245.
  assert v.high - v.difference == pytest.approx(3.18245 * 0.0129099 / 2, 1e-4)
  assert v.values == pytest.approx((15.0, 16.015))


def test_too_few_pairs_are_not_run():
  rows = [_row('a', s, loss=0.0) for s in range(2)]
  rows += [_row('b', s, loss=1.0 + s / 100) for s in range(2)]
  assert verdicts.judge(_claim(), rows).outcome == 'not run'
  assert verdicts.judge(_claim(seeds_needed=2), rows).outcome == 'reproduced'
  absent = verdicts.judge(_claim(metric='other', seeds_needed=2), rows)
  assert absent.outcome == 'not run' and math.isnan(absent.difference)


def test_a_share_of_no_gain_is_inconclusive():
  """All ran, and there is nothing to share: the better one is not better."""
  metric = "share_of_gain(metric='loss', worse='b', better='t')"
  rows = [_row(arm, s, loss=1.0) for arm in 'ab' for s in range(3)]
  claim = _claim(metric=metric)
  v = verdicts.judge(claim, [*rows, _row('t', 0, loss=1.5)])
  assert (v.outcome, v.pairs) == ('inconclusive', 0)
  assert math.isnan(v.difference)
  better = [*rows, _row('t', 0, loss=0.5)]
  assert verdicts.judge(claim, better).pairs == 3
  few = [r for r in rows if r['seed'] < 2]
  assert verdicts.judge(claim, few).outcome == 'not run'


def test_a_seed_without_a_value_is_told():
  """All ran; with seed 1 no loss of `over` is as high as that of `a`."""
  metric = "at_equal(metric='loss', at='loss', over=('c', 'd'))"
  lost = {'a': (1.0, 9.0, 1.0), 'b': 3 * (1.0,), 'c': 3 * (0.5,)}
  lost['d'] = 3 * (2.0,)
  rows = [
    _row(k, s, loss=v) for k, of in lost.items() for s, v in enumerate(of)
  ]
  v = verdicts.judge(_claim(metric=metric), rows)
  assert (v.outcome, v.pairs) == ('inconclusive', 2)
  assert v.reason == 'no value for seed 1' and math.isnan(v.difference)


def test_one_checkpoint_by_two_metrics():
  rows = [_row('a', s, x=1.0, y=1.5 + s / 100) for s in range(3)]
  v = verdicts.judge(_claim(metric=('x', 'y'), arms=('a', 'a')), rows)
  assert v.outcome == 'reproduced' and v.difference == pytest.approx(-0.51)


def test_what_does_not_vary_was_not_trained():
  rows = [_row('a', s, loss=1.0) for s in range(3)]
  rows += [_row('b', s, loss=2.0) for s in range(3)]
  v = verdicts.judge(_claim(), rows)
  assert (v.outcome, v.reason) == ('inconclusive', 'no variance over the seeds')
  count = _claim(kind='deterministic')
  assert verdicts.judge(count, rows).outcome == 'reproduced'
  rows[0]['metrics']['loss'] += 0.001
  assert verdicts.judge(_claim(), rows).outcome == 'reproduced'


def test_where_the_interval_is_of_zero():
  rows = [_row('b', s, loss=0.0) for s in range(3)]
  for low, word in ((-2.0, 'below'), (1.0, 'above'), (-0.1, 'across')):
    mine = [_row('a', s, loss=low + 0.1 * s) for s in range(3)]
    assert verdicts.judge(_claim(), rows + mine).against_0 == word
  assert not verdicts.judge(_claim(), rows).against_0


def test_what_was_said_to_be_untestable_stays_so():
  rows = [_row('a', s, loss=s / 100) for s in range(3)]
  rows += [_row('b', s, loss=1.0) for s in range(3)]
  said = {'c': 'the task is not learned (2026-01-02)'}
  v = verdicts.judge(_claim(), rows, said)
  assert (v.outcome, v.reason) == ('not testable here', said['c'])
  assert v.difference == pytest.approx(-0.99)
  v = verdicts.judge(_claim(), [], said)
  assert v.outcome == 'not testable here' and math.isnan(v.difference)
  assert verdicts.judge(_claim(name='d'), rows, said).outcome == 'reproduced'


def test_rows_are_kept_short():
  row = _row('a', 0, x=1 / 3)
  row['metrics'] |= {
    'eval/wiki/bits_per_byte': 2.0,
    'eval/loss': 1.23456789,
    'steps': 12345678,
  }
  kept = results.for_keeping(row)
  assert kept['metrics'] == {
    'x': 0.3333333,
    'eval/loss': 1.234568,
    'steps': 12345678,
  }
  assert 'eval/wiki/bits_per_byte' in row['metrics'], 'the row itself is whole'


def test_index_of_kept_claims(tmp_path):
  """Counts by study, and every claim with what was found."""
  claim = dict(
    sentence='More is better.',
    paper='P',
    table='table 1',
    direction='lower',
    smallest_effect=0.5,
    kind='quality',
  )
  for name, verdict, mean in (('b', 'not run', None), ('a', 'reproduced', -1)):
    where = tmp_path / name
    where.mkdir()
    c = claim | {'verdict': verdict, 'difference': mean}
    c |= {'low': mean and -1.5, 'high': mean and -0.7}
    c['against_0'] = 'below' if mean else ''
    found = {'study': name, 'size': 'quick', 'claims': [c]}
    (where / 'claims.json').write_text(json.dumps(found))
  kept = json.dumps(found)
  page = index.page(index.read(tmp_path))
  lines = [line for line in page.split('\n') if line.startswith('|')]
  assert lines[0].startswith('| study | size | claims | about quality | repr')
  assert lines[2].startswith(
    '| [`a`](a/results.md) | quick | 1 | 1 | 1 | 0 | 0 | 0 | 0 |'
  )
  assert lines[4] == '| all |  | 2 | 2 | 1 | 0 | 0 | 0 | 1 |'
  assert 'about quality 1 of 2 (50%) are reproduced or' in page
  assert '| -1 (-1.5 to -0.7) | below | < -0.5 | reproduced |' in lines[7]
  assert '| - | - | < -0.5 | not run |' in lines[8]
  assert 'inconclusive 0 would take more than 20' in ' '.join(page.split())
  # What three pairs with a deviation of 0.4 / 4.303 * sqrt(3) leave open.
  wide = c | {'verdict': 'inconclusive', 'pairs': 3, 'against_0': 'below'}
  for low, told in ((-1.1, '(8)'), (-4.1, '(> 20)')):
    found['claims'] = [
      wide | {'low': low, 'difference': -0.7, 'high': -1.4 - low}
    ]
    (tmp_path / 'a' / 'claims.json').write_text(json.dumps(found))
    assert f'| inconclusive {told} |' in index.page(index.read(tmp_path))
  many = ' '.join(index.page(index.read(tmp_path)).split())
  assert 'inconclusive 1 would take more than 20' in many
  for bad in ({'pairs': '3'}, {'units': None}, {'units': True}):
    found['claims'] = [wide | {'low': -1.1, 'high': -0.3} | bad]
    found['claims'][0]['difference'] = -0.7
    (tmp_path / 'a' / 'claims.json').write_text(json.dumps(found))
    with pytest.raises(ValueError, match='holds no verdicts'):
      index.read(tmp_path)
  (tmp_path / 'a' / 'claims.json').write_text(kept)
  with pytest.raises(ValueError, match='holds no'):
    index.read(tmp_path / 'a')
  # Of a study that has run at a better size, that alone.
  (tmp_path / 'a_quick').mkdir()
  old = (tmp_path / 'a' / 'claims.json').read_text()
  (tmp_path / 'a_quick' / 'claims.json').write_text(old)
  new = old.replace('"quick"', '"reference"')
  (tmp_path / 'a' / 'claims.json').write_text(new)
  found = index.read(tmp_path)
  assert [(s['study'], s['size']) for s in found] == [
    ('a', 'reference'),
    ('b', 'quick'),
  ]
