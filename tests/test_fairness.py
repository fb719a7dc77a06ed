"""Fairness: what two arms took, in all their stages, beside a verdict."""

import math

import pytest

from moe_jax.studies import fairness, report, study as study_lib, verdicts

VARIED = ('active', 'data', 'latency')
MATCHED = ('parameters', 'tokens', 'flops')


def row(arm, seed=0, needs=(), domains=('x',), **metrics):
  known = {
    'parameters': 100,
    'active_parameters': 50,
    'flops_per_token': 2.0,
    'tokens': 1000,
    'eval/seconds': 1.5,
  }
  return {
    'arm': arm,
    'seed': seed,
    'status': 'done',
    'needs': [list(n) for n in needs],
    'domains': list(domains),
    'metrics': known | metrics,
  }


def claim(**fields):
  base = dict(
    name='c',
    paper='P',
    table='T',
    sentence='A.',
    metric='loss',
    direction='lower',
    smallest_effect=0.1,
    arms=('mix', 'scratch'),
    matched=MATCHED,
    varied=VARIED,
  )
  return study_lib.Claim(**(base | fields))


def rows(scratch=3000, **rest):
  """A seed, two branches of it, their mixture; and a model from scratch."""
  out = [row('seed', tokens=1000, domains=('x', 'y'))]
  for domain in 'xy':
    branch = row(f'b_{domain}', needs=[('seed', 0)], domains=(domain,))
    branch['metrics']['tokens'] = 500
    out.append(branch)
  made = [('b_x', 0), ('b_y', 0)]
  for s in range(3):
    noise, both = s / 100, ('x', 'y')
    out.append(row('mix', s, made, both, loss=1.0 + noise, **rest))
    out.append(row('scratch', s, (), both, tokens=scratch, loss=2.0))
    out.append(row('btm', s, made, both, tokens=0, loss=1.5 + noise))
  return out


def test_stages_are_counted_once():
  """The seed's tokens are not in it for each branch."""
  latest = {(r['arm'], r['seed']): r for r in rows()}
  spent = fairness.of(('mix', 1), latest)
  assert [name for name, *_ in spent.stages] == ['seed', 'b_x', 'b_y', 'mix']
  assert spent.tokens == 1000 + 500 + 500 + 1000
  assert spent.flops == 2 * spent.tokens and spent.latency == 1.5
  assert (spent.parameters, spent.active) == (100, 50)
  assert spent.data == ('x', 'y')
  # What is judged alone is no stage, but those that it is made of are.
  judged = fairness.of(('btm', 0), latest)
  assert judged.tokens == 2000 and judged.data == ('x', 'y')
  del latest['seed', 0]
  assert math.isnan(fairness.of(('mix', 1), latest).tokens)
  assert fairness.of(('mix', 1), latest).data == ()


def test_a_winner_is_named_where_the_matches_hold():
  v = verdicts.judge(claim(), rows())
  assert (v.outcome, v.reason) == ('reproduced', '')
  assert v.beside.unfair == '' and v.beside.apart('tokens') == 0
  near = verdicts.judge(claim(), rows(scratch=3149))  # less than 5 %
  assert near.outcome == 'reproduced'


@pytest.mark.parametrize('scratch', [2800, 3200])
def test_no_winner_is_named_where_one_does_not(scratch):
  v = verdicts.judge(claim(), rows(scratch=scratch))
  assert v.outcome == 'inconclusive' and v.difference < -0.9
  want = f'declared matched, but tokens 3000 against {scratch}; flops'
  assert v.reason.startswith(want)
  # What varies by design says nothing.
  free = claim(matched=('parameters',), varied=(*VARIED, 'tokens', 'flops'))
  assert verdicts.judge(free, rows(scratch=scratch)).outcome == 'reproduced'
  wider = verdicts.judge(claim(), rows(parameters=106, scratch=3000))
  assert 'parameters 106 against 100' in wider.reason


def test_what_is_not_known_is_not_matched():
  old = rows()
  for r in old:
    r['metrics'].pop('tokens')
  v = verdicts.judge(claim(), old)
  assert v.outcome == 'inconclusive' and 'tokens not known' in v.reason
  data = claim(matched=('data',), varied=(*MATCHED, 'active', 'latency'))
  other = rows()
  for r in other:
    r['domains'] = r['domains'] if r['arm'] != 'scratch' else ['x']
  v = verdicts.judge(data, other)
  assert v.reason == 'declared matched, but data x, y against x'


def test_a_claim_declares_all_or_nothing():
  assert fairness.check('c', (), ()) is None
  for matched, varied, message in (
    (MATCHED, ('active', 'data'), "'latency' must be in one of"),
    (MATCHED, (*VARIED, 'tokens'), "'tokens' must be in one of"),
    ((*MATCHED, 'speed'), VARIED, "unknown quantity of c 'speed'"),
  ):
    with pytest.raises(ValueError, match=message):
      fairness.check('c', matched, varied)


def test_it_stands_beside_the_verdict():
  v = verdicts.judge(claim(), rows(scratch=3200))
  cells = {c[0]: c[1:] for c in v.beside.cells()}
  assert cells['tokens'] == ('3000', '3200', '6.7%', '**not matched**')
  assert cells['latency'] == ('1.5', '1.5', '0.0%', 'varies by design')
  assert cells['tokens by stage'][0].startswith('seed: 1000, b_x: 500')
  study = study_lib.load('configs/ablations/scaling.py:reference')
  kept = report._record(v, study)
  assert kept['fairness']['mix']['tokens'] == 3000
  assert kept['fairness']['matched'] == [*kept['matched']] == [*MATCHED]
  bare = verdicts.judge(claim(matched=(), varied=()), rows())
  assert bare.beside is None
  kept = report._record(bare, study)
  assert not {'fairness', 'matched', 'varied'} & kept.keys()
