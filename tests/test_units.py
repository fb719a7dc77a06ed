"""Runs that began with one pre-trained model are one observation."""

import pytest
from scipy import stats

from moe_jax.studies import pages, power, verdicts
from tests.claims import claim as _claim, row as _row

# Differences by seed, and the pre-trained model that both arms began with.
FOUND = {
  0: (0.1, 'x'),
  1: (0.5, 'y'),
  2: (0.9, 'z'),
  3: (0.3, 'x'),
  4: (0.7, 'y'),
}
MEANS = (0.2, 0.6, 0.9)


def _rows(found, needs=lambda name: [[name, 0]]):
  rows = []
  for seed, (value, name) in found.items():
    of = {'needs': needs(name)}
    rows.append(_row('a', seed, loss=2 + value) | of)
    rows.append(_row('b', seed, loss=2.0) | of)
  return rows


def test_the_interval_is_over_models():
  claim = _claim(direction='higher')
  v = verdicts.judge(claim, _rows(FOUND))
  want = stats.ttest_1samp(MEANS, 0).confidence_interval(0.95)
  assert (v.low, v.high) == pytest.approx((want.low, want.high))
  assert v.difference == pytest.approx(sum(MEANS) / 3)
  assert v.values == pytest.approx((2 + sum(MEANS) / 3, 2.0))
  assert (v.pairs, v.units) == (5, 3)
  assert v.outcome == 'inconclusive', 'five runs would have been enough'
  assert verdicts.interval([d for d, _ in FOUND.values()])[1] > 0.1


@pytest.mark.parametrize(
  ('of_a', 'of_b', 'units'),
  [
    ('xyzxy', 'uvwuv', 3),  # in step
    ('xyzxy', 'uvwst', 3),  # one arm's repeat, the other's do not
    ('xyzxy', '-----', 3),
    ('xxyyz', 'uvvwt', 2),  # 0 and 1 by x, 1 and 2 by v, 3 with 2 by y
    ('xyzst', 'uvwpq', 5),
  ],
)
def test_pairs_that_share_a_model_are_one(of_a, of_b, units):
  """By whichever arm, and over others: no two units have a model in common."""
  rows = _rows(FOUND)
  for row in rows:
    name = (of_a if row['arm'] == 'a' else of_b)[row['seed']]
    row['needs'] = [[name, 0]] if name != '-' else []
  v = verdicts.judge(_claim(), rows)
  assert (v.pairs, v.units) == (5, units)


def test_models_may_be_of_a_model_and_stand_in_a_metric():
  """Branches of two bases; they are those of an arm that a metric names."""
  rows = [_row('a', s, loss=s / 9) | {'needs': []} for s in range(4)]
  rows += [_row('b', s, loss=0.0) | {'needs': []} for s in range(4)]
  metric = "mean_over(metric='loss', arms=('{}',), minus=('c',))".format
  claim = _claim(metric=(metric('a'), metric('b')))
  rows += [_row('c', s, loss=1.0) | {'needs': []} for s in range(4)]
  assert verdicts.judge(claim, rows).units == 4
  for s in range(4):
    rows[8 + s]['needs'] = [['branch', s]]
    rows.append(_row('branch', s) | {'needs': [['base', s % 2]]})
  assert verdicts.judge(claim, rows).units == 2
  assert verdicts.judge(_claim(), rows).units == 4


def test_where_no_two_runs_are_apart_nothing_is_decided():
  rows = _rows(FOUND)
  for i, row in enumerate(rows):
    row['needs'] = [[name, 0] for name in 'xyzstu'[i // 2 : i // 2 + 2]]
  v = verdicts.judge(_claim(direction='higher'), rows)
  assert (v.pairs, v.units, v.outcome) == (5, 1, 'inconclusive')
  assert v.reason == 'no two runs are of different models'


def test_equal_means_of_models_are_no_certainty():
  found = {0: (0.2, 'x'), 1: (0.5, 'y'), 2: (0.5, 'x'), 3: (0.2, 'y')}
  v = verdicts.judge(_claim(direction='higher'), _rows(found))
  assert (v.outcome, v.reason) == ('inconclusive', 'no variance over the seeds')


def test_a_seed_that_diverged_is_a_run_of_its_own():
  """`least` keeps it, by another arm."""
  rows = _rows(FOUND, lambda name: [[name, 0]])
  rows += [_row('c', s, loss=1.0) | {'needs': []} for s in range(6)]
  least = "least(metric='loss', arms=('{}', 'c'))".format
  claim = _claim(metric=(least('a'), least('b')))
  assert verdicts.judge(claim, rows).units == 4


@pytest.mark.parametrize(('needs', 'units'), [([], 5), ([['one', 0]], 1)])
def test_seeds_count_without_models_or_with_one(needs, units):
  v = verdicts.judge(_claim(direction='higher'), _rows(FOUND, lambda _: needs))
  want = verdicts.interval([d for d, _ in FOUND.values()])
  assert (v.difference, v.low, v.high) == pytest.approx(want)
  assert (v.pairs, v.units) == (5, units)


def test_rows_of_earlier_versions_name_the_model_alone():
  rows = [{k: v for k, v in r.items() if k != 'needs'} for r in _rows(FOUND)]
  assert verdicts.judge(_claim(), rows).units == 5
  rows = [r | {'init_from': 'one'} for r in rows] + [_row('one', 0)]
  assert verdicts.judge(_claim(), rows).units == 1


def test_a_pilot_counts_models():
  study = type('Study', (), {'claims': (_claim(),)})
  (found,) = power.of(study, _rows(FOUND))
  assert found.pairs == 3
  assert found.deviation == pytest.approx(stats.tstd(MEANS))
  # Of one model it does not know how models differ.
  (found,) = power.of(study, _rows(FOUND, lambda _: [['one', 0]]))
  assert (found.pairs, found.seeds) == (1, 0)


def test_tables_tell_runs_and_models():
  cases = (lambda name: [[name, 0]], lambda _: [], lambda _: [['one', 0]])
  found = [verdicts.judge(_claim(), _rows(FOUND, of)) for of in cases]
  lines = pages.summary(found)
  assert [line[5] for line in lines] == ['5 of 3', '5', '5 of 1']
  assert lines[0][6] == 'inconclusive (7 models)'
  told = [' '.join(pages._apart([v]).split()) for v in found]
  assert '`5 of 3` are 5 runs of 3 models' in told[0] and told[1] == ''
  assert '`5 of 1` are 5 runs of one pre-trained model' in told[2]
