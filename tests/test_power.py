"""Power: seeds by simulated pilots; what cannot be tested is said first."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from moe_jax.studies import power, report, study as study_lib, verdicts
from tests import fake_study

fake = fake_study.fake  # the fixture
path = fake_study.path  # the fixture


@pytest.mark.parametrize(
  ('direction', 'smallest', 'mean', 'n'),
  [('lower', 0.01, -0.03, 4), ('higher', 0.0, 0.02, 3), ('lower', 0.0, 0.03, 5)]
  + [('equal', 0.03, 0.005, 6), ('equal', 0.01, 0.04, 4)],
)
def test_chance_is_that_of_drawn_verdicts(direction, smallest, mean, n):
  """Verdicts of 20,000 drawn studies, by `decide` on intervals of our own."""
  d = np.random.default_rng(0).normal(mean, 0.012, (20_000, n))
  half = stats.t.ppf(0.975, n - 1) * d.std(1, ddof=1) / n**0.5
  low, high = d.mean(1) - half, d.mean(1) + half
  drawn = [
    verdicts.decide(direction, smallest, a, b) != verdicts.INCONCLUSIVE
    for a, b in zip(low, high)
  ]
  told = power.chance(direction, smallest, mean, 0.012, n)
  # Of 'equal' within its margin it is a lower bound.
  room = 0.06 if direction == 'equal' and mean < smallest else 0.01
  assert told == pytest.approx(np.mean(drawn), abs=room)


def test_seeds_are_the_fewest():
  found = power.seeds('lower', 0.01, -0.03, 0.012)
  at = lambda n: power.chance('lower', 0.01, -0.03, 0.012, n)
  assert at(found) >= 0.8 > at(found - 1)
  assert power.seeds('lower', 0.01, -0.011, 0.012) == power.MOST + 1
  assert power.seeds('higher', 0.01, -0.03, 0.012) == found  # contradicted
  asked = [power.Power('c', 3, -1.0, 0.1, n) for n in (4, 7)]
  asked.append(power.Power('d', 3, -1.0, 9.0, power.MOST + 1, 'why'))
  assert power.enough(asked) == 7


def _rows(arm, losses, **more):
  return [
    {'arm': arm, 'seed': s, 'status': 'done', 'stage': 'arm', 'data': 'd'}
    | {'date': '2026-02-02', 'metrics': {'loss': v} | more}
    for s, v in enumerate(losses)
  ]


def test_a_pilot_decides_before_the_runs(path, tmp_path, fake):
  study, work = study_lib.load(path), tmp_path / 'w'
  rows = _rows('a', [1.0, 1.1, 0.9]) + _rows('b', [1.12, 1.21, 0.97])
  asked = power.of(study, rows)
  (better,) = (p for p in asked if p.claim == 'a_better')
  assert 'same_count' not in {p.claim for p in asked}  # is deterministic
  assert (better.pairs, better.seeds) == (3, power.MOST + 1)
  assert better.mean == pytest.approx(-0.1)
  assert 'more than 20 seeds' in better.why_not
  fake_study.sweep(study, work)
  assert report.write(study, report.results.read(work / 'results.jsonl'), work)
  kept = power.record(study, asked, '2020-01-01')
  with pytest.raises(ValueError, match='w holds runs of arms: what can be t'):
    power.keep(work, kept)
  power.keep(tmp_path / 'next', kept).rename(work / power.FILE)
  rows = report.results.read(work / 'results.jsonl')
  found = {v.claim.name: v for v in report.write(study, rows, work)}
  assert found['a_better'].outcome == 'not testable here'
  assert '(2020-01-01)' in found['a_better'].reason
  report.land(study, work, tmp_path / 'kept')
  assert (tmp_path / 'kept' / power.FILE).exists()
  assert 'not testable here' in (tmp_path / 'kept/results.md').read_text()
  (work / power.FILE).write_text(json.dumps(kept | {'date': '2999-01-01'}))
  with pytest.raises(ValueError, match='decided before the arms run'):
    report.write(study, rows, work)


def test_a_task_that_is_not_learned(tmp_path):
  """Of the best arm on the task, be it in the claim or not."""
  metric = dict(metric='best/accuracy', direction='higher', smallest_effect=0.0)
  claim = study_lib.Claim(
    name='c', paper='', table='', sentence='', arms=('a', 'b'), **metric
  )
  more = {'eval/majority': 0.5}
  at = lambda arm, x: [
    r | {'metrics': {'best/accuracy': x + 0.001 * r['seed']} | more}
    for r in _rows(arm, [0, 0])
  ]
  rows = at('a', 0.55) + at('b', 0.58)
  assert 'not learned: the best arm of the pilot is 8.0' in (
    power._of(claim, rows).why_not
  )
  assert not power._not_learned(claim, rows + at('third', 0.7))
  other = [r | {'data': 'x'} for r in at('third', 0.7)]
  assert power._not_learned(claim, rows + other)


@pytest.mark.parametrize('spread', [0.01, 0.3])
def test_seeds_that_would_decide_are_those_of_such_a_pilot(spread):
  """The deviation is got back from the interval."""
  d = [0.3, 0.3 + spread, 0.3 - 2 * spread, 0.3 + spread]
  after = lambda *of: power.afterwards('higher', 0.1, *of)
  want = power.seeds('higher', 0.1, np.mean(d), np.std(d, ddof=1))
  assert after(verdicts.interval(d), 4) == want
  assert (want > power.MOST) == (spread > 0.1)
  nothing = ((0.3, 0.3, 0.3), 4), ((math.nan,) * 3, 4), ((0.3, 0.1, 0.5), 1)
  assert [after(*of) for of in nothing] == [0, 0, 0]
