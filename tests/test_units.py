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


def test_a_pair_has_the_models_of_both_arms():
  """That of one arm repeats, that of the other does not."""
  rows = _rows(FOUND)
  for i, row in enumerate(rows):
    if row['arm'] == 'b':
      row['needs'] = [['other', i]]
  assert verdicts.judge(_claim(), rows).units == 5
  for row in rows:
    if row['arm'] == 'b':
      row['needs'] = []
  assert verdicts.judge(_claim(), rows).units == 3


@pytest.mark.parametrize('needs', [lambda _: [], lambda _: [['one', 0]]])
def test_seeds_count_without_models_or_with_one(needs):
  v = verdicts.judge(_claim(direction='higher'), _rows(FOUND, needs))
  want = verdicts.interval([d for d, _ in FOUND.values()])
  assert (v.difference, v.low, v.high) == pytest.approx(want)
  assert v.pairs == v.units == 5


def test_rows_of_earlier_versions_have_no_needs():
  rows = [{k: v for k, v in r.items() if k != 'needs'} for r in _rows(FOUND)]
  assert verdicts.judge(_claim(), rows).units == 5


def test_a_pilot_counts_models():
  (study,) = [type('Study', (), {'claims': (_claim(),)})]
  (found,) = power.of(study, _rows(FOUND))
  assert found.pairs == 3
  assert found.deviation == pytest.approx(stats.tstd(MEANS))


def test_tables_tell_runs_and_models():
  apart, same = (
    verdicts.judge(_claim(), _rows(FOUND, *n)) for n in ((), (lambda _: [],))
  )
  assert [line[5] for line in pages.summary([apart, same])] == ['5 of 3', '5']
