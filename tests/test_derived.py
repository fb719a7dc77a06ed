"""Metrics made of others, by hand."""

import pytest

from moe_jax.studies import derived, verdicts
from tests.claims import claim as _claim, row as _row


def test_steps_to_loss():
  curve = {'step': [10, 20, 30], 'loss': [5.0, 3.0, 2.0]}
  assert derived.steps_to(curve, 4.0) == 15.0
  assert derived.steps_to(curve, 6.0) == 10.0
  assert derived.steps_to(curve, 1.0) == 30.0  # never: all of its steps
  rows = [
    _row('a', 0) | {'curve': curve},
    _row('b', 0) | {'curve': {'step': [10, 20, 30], 'loss': [5, 4, 2.5]}},
    _row('a', 1) | {'curve': curve},
  ]
  found = derived.values("steps_to_loss(of='b')", 'a', rows)
  assert found == {0: 25.0}
  assert derived.values("steps_to_loss(of='b')", 'b', rows) == {0: 30.0}


def test_deviation_is_from_the_median():
  rows = [_row('a', s, loss=v) for s, v in enumerate((1.0, 2.0, 7.0))]
  found = derived.values("deviation(metric='loss')", 'a', rows)
  assert found == {0: 1.0, 1: 0.0, 2: 5.0}


def test_means_over_arms():
  """A grid of two rates by two batches; a seed that one cell lacks."""
  cells = {'a': (1.0, 2.0), 'b': (3.0, 5.0), 'c': (0.5, 1.0), 'd': (1.5, 1.0)}
  rows = [_row(a, s, x=v[s]) for a, v in cells.items() for s in (0, 1)]
  rows.append(_row('a', 2, x=9.0))
  get = lambda spec, arm: derived.values(spec, arm, rows)
  assert get("mean_over(metric='x', arms=('a', 'b'))", 'b') == {0: 2, 1: 3.5}
  of = "least(metric='x', arms=('a', 'c'))"  # seed 2 has one of them
  assert get(of, 'a') == get(of, 'c') == {0: 0.5, 1: 1.0, 2: 9.0}
  of = "mean_over(metric='x', arms=('a', 'b'), minus=('c', 'd'))"
  assert get(of, 'a') == {0: 2.0 - 1.0, 1: 3.5 - 1.0}
  with pytest.raises(ValueError, match="arm 'c' is none of a, b"):
    get(of, 'c')
  v = verdicts.judge(
    _claim(
      metric=(of, "mean_over(metric='x', arms=('c',))"),
      arms=('a', 'c'),
      direction='higher',
      seeds_needed=2,
    ),
    rows,
  )
  assert v.values == (1.75, 0.75) and v.difference == 1.0 and v.pairs == 2


def test_gap_is_of_one_run():
  rows = [_row('a', 0, x=3.0, y=1.0), _row('a', 1, x=3.0), _row('b', 0, y=9.0)]
  assert derived.values("gap(metric='x', less='y')", 'a', rows) == {0: 2.0}


def test_share_of_a_gain():
  """The teacher has one seed; ratios are of the mean gain."""
  rows = [
    *(_row('alone', s, loss=v) for s, v in enumerate((2.0, 2.2))),
    *(_row('taught', s, loss=v) for s, v in enumerate((1.9, 2.3))),
    _row('taught', 2, loss=0.0),  # without a partner
    _row('teacher', 0, loss=1.6),
  ]
  spec = "share_of_gain(metric='loss', worse='{}', better='{}')".format
  get = lambda arm, *of: derived.values(spec(*of), arm, rows)
  found = get('taught', 'alone', 'teacher')
  assert found == pytest.approx({0: 0.1 / 0.5, 1: -0.1 / 0.5})
  assert get('alone', 'alone', 'teacher') == {0: 0.0, 1: 0.0}
  assert get('taught', 'teacher', 'alone') == {}
  assert get('taught', 'alone', 'absent') == {}


def test_speed_up_is_read_between_the_runs_of_the_other():
  """Losses that fall by 0.1 a doubling; an arm 0.15 below needs 2^1.5."""
  rows = [
    _row(f'dense_{n}', seed, **{'eval/loss': 2 + seed - 0.1 * n, 'steps': 2**n})
    for n in range(3, 8)
    for seed in (0, 1)
  ]
  for name, loss in (('mid', 1.35), ('low', 0.0), ('high', 9.0)):
    rows += [
      _row(name, seed, **{'eval/loss': loss + seed, 'steps': 2**5})
      for seed in (0, 1)
    ]
  over = tuple(f'dense_{n}' for n in range(3, 8))
  found = lambda arm: derived.values(f'speed_up(over={over})', arm, rows)
  assert found('dense_5') == pytest.approx({0: 1.0, 1: 1.0})
  assert found('mid') == pytest.approx({s: 2**1.5 for s in (0, 1)})
  assert found('low') == pytest.approx({s: 4.0 for s in (0, 1)})  # the longest
  assert found('high') == {0: 0.0, 1: 0.0}
  assert found('dense_3') == pytest.approx({0: 1.0, 1: 1.0})  # at the edge
  assert found('dense_7')[0] == pytest.approx(1.0)
  # What lies outside of the other's losses, not at their edges, is a bound.
  only = lambda arm: derived.bounds(f'speed_up(over={over})', arm, rows)
  assert only('low') == only('high') == {0, 1}
  assert not any(only(a) for a in ('mid', 'dense_3', 'dense_5', 'dense_7'))
  assert derived.bounds('eval/loss', 'low', rows) == set()
  assert derived.bounds("gap(metric='x', less='y')", 'low', rows) == set()
  del rows[0]  # dense_3 of seed 0
  assert set(found('mid')) == {1} and only('low') == {1}


def test_no_verdict_stands_on_bounds():
  """Of one seed of three what is said is at least that."""
  rows = []
  for seed in range(3):
    of = {2: 0.5 + seed, 4: 0.3 + seed}
    rows += [
      _row(f'd{n}', seed, **{'eval/loss': v, 'steps': n}) for n, v in of.items()
    ]
    mine = 0.31 + seed - (seed == 2) * 0.1
    rows.append(_row('a', seed, **{'eval/loss': mine, 'steps': 1}))
  metric = "speed_up(over=('d2', 'd4'))"
  claim = _claim(metric=metric, arms=('a', 'd2'), direction='higher')
  v = verdicts.judge(claim, rows)
  assert v.low > 0.1  # the rule alone would say reproduced
  assert (v.outcome, v.reason) == (
    'inconclusive',
    'of 1 of 3 seeds there is a bound alone',
  )


def test_at_equal_is_read_between_the_runs_of_the_others():
  """Along a parabola through the others; not beyond their losses."""
  bowl = {'a': (3.0, 4.0), 'c': (1.0, 0.0), 'b': (2.0, 1.0)}
  more = {'below': (2.5, 2.0), 'edge': (1.0, 0.5), 'out': (0.9, 0.0)}
  rows = [
    _row(name, seed, **{'train/loss': x + seed, 'eval/m': y - seed})
    for name, (x, y) in (bowl | more).items()
    for seed in (0, 1)
  ]
  metric = f"at_equal(metric='eval/m', at='train/loss', over={tuple(bowl)})"
  found = lambda arm: derived.values(metric, arm, rows)
  for name in bowl:
    assert found(name) == {0: 0.0, 1: 0.0}
  assert found('below') == pytest.approx({0: -0.5, 1: -0.5})
  assert found('edge') == {0: 0.5, 1: 0.5} and found('out') == {}
  del rows[0]  # 'a' of seed 0
  assert set(found('below')) == {1}


def test_a_ratio_is_of_one_run():
  rows = [
    _row('a', 0, tokens=12, parameters=3),
    _row('a', 1, tokens=12, parameters=4),
    _row('a', 2, tokens=12),
    _row('b', 3, tokens=12, parameters=0),
  ]
  metric = "ratio(metric='tokens', to='parameters')"
  assert derived.values(metric, 'a', rows) == {0: 4.0, 1: 3.0}
  assert derived.values(metric, 'b', rows) == {}
