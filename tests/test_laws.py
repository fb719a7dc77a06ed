"""Scaling laws: known parameters come back, and what is left out is met."""

import dataclasses
import math

import numpy as np
import pytest

from moe_jax.studies import lawful, laws

JOINT = {
  **dict(a=-1.2, alpha=-0.3, gamma=0.02, delta=-0.15),
  **dict(b=-1.0, beta=-0.4, zeta=0.01, omega=-0.02, c=0.1),
}
ROUTED = dict(a=-0.08, b=-0.06, c=0.01, k=0.6)
CENTRE, EXPERTS = (24e3, 4e6), (1.5, 128.0)


def _by_hand(form, n, E, d):
  """The docstring's equations, one run at a time."""
  shift = 1 / (1 / EXPERTS[0] - 1 / EXPERTS[1])
  e = 1 / (1 / (E - 1 + shift) + 1 / EXPERTS[1])
  n, d = n / CENTRE[0], d / CENTRE[1]
  if form == 'routed':
    p, ln, le = ROUTED, math.log(n), math.log(e)
    return math.exp(p['a'] * ln + p['b'] * le + p['c'] * ln * le + p['k'])
  p, le = JOINT, math.log(e)
  of_n = e ** p['delta'] * n ** (p['alpha'] + p['gamma'] * le)
  of_d = e ** p['omega'] * d ** (p['beta'] + p['zeta'] * le)
  return math.exp(p['a']) * of_n + math.exp(p['b']) * of_d + math.exp(p['c'])


def _points(form, noise=0.0):
  rng, rows = np.random.default_rng(0), []
  for n in (6e3, 24e3, 96e3):
    for E in (1, 4, 16, 64):
      for d in (1e6, 4e6, 16e6) if form == 'joint' else (4e6,):
        for _ in range(2):
          loss = _by_hand(form, n, E, d) * math.exp(rng.normal(0, noise))
          rows.append((n, E, d, loss))
  return laws.Points(*np.array(rows).T)


@pytest.mark.parametrize(
  ('form', 'known'), [('joint', JOINT), ('routed', ROUTED)]
)
def test_parameters_come_back(form, known):
  law = laws.fit(_points(form), form)
  assert law.error < 1e-6
  told = law.loss([5e4, 2e5], [32, 1], [8e6, 2e7])
  by_hand = [_by_hand(form, 5e4, 32, 8e6), _by_hand(form, 2e5, 1, 2e7)]
  # At one number of tokens the centre is these; so is that of `joint` here.
  np.testing.assert_allclose(told, by_hand, rtol=1e-4)
  assert law.parameters == pytest.approx(known, abs=2e-3)


def test_intervals_hold_the_parameters_of_noisy_runs():
  law = laws.fit(_points('joint', 0.003), 'joint', draws=40)
  inside = [low <= JOINT[k] <= high for k, (low, high) in law.intervals.items()]
  assert sum(inside) >= 7 and len(inside) == 9
  assert all(high - low < 0.5 for low, high in law.intervals.values())
  assert 0.001 < law.error < 0.006


def test_effective_experts_begin_and_saturate():
  E = np.array([1.0, 2.0, 64.0, 1e9])
  e = laws.effective_experts(E, 1.5, 128.0)
  assert e[0] == pytest.approx(1.5) and e[-1] == pytest.approx(128.0, rel=1e-4)
  assert (np.diff(e) > 0).all() and e[2] < 64


def test_a_corner_that_the_law_has_not_seen():
  points = _points('joint', 0.003)
  corner = (points.experts == 64) & (points.tokens == 16e6)
  error, residuals = laws.left_out(points, 'joint', corner)
  assert error < 0.02 and residuals.shape == (corner.sum(),)
  bent = points.loss * np.where(corner, 1.1, 1.0)
  bent = laws.Points(points.parameters, points.experts, points.tokens, bent)
  assert laws.left_out(bent, 'joint', corner)[0] > 0.08


def test_what_cannot_be_fitted_is_refused():
  with pytest.raises(ValueError, match="'cubic'; valid: joint, routed"):
    laws.fit(_points('routed'), 'cubic')
  few = _points('joint').take(np.arange(6))
  with pytest.raises(ValueError, match=r"'joint' has 9 param.* of 3 models"):
    laws.fit(few, 'joint')
  with pytest.raises(ValueError, match=r'loss of the points .* above 0'):
    laws.Points([1], [1], [1], [0])
  with pytest.raises(ValueError, match='want equal lengths'):
    laws.Points([1, 2], [1], [1], [1])


def test_a_study_fits_its_rows_and_says_where_it_fails():
  """Rows of known losses; one length of one E is 5 % off, one is unseen."""
  arms, rows = {}, []
  for n in (6e3, 24e3, 96e3):
    for E in (1, 4, 16):
      for d in (1e6, 4e6, 16e6):
        name = f'n{n:.0f}_e{E}_t{d:.0f}'
        arms[name] = dict(experts=E, tokens=d, embeddings=500, label=f'{n:.0f}')
        loss = _by_hand('joint', n, E, d)
        metrics = {'eval/loss': loss, 'active_parameters': n + 500}
        rows.append(
          {'arm': name, 'seed': 0, 'status': 'done', 'metrics': metrics}
        )
  rows[-1]['metrics']['eval/loss'] *= 1.05
  last = rows[-1]['arm']
  spec = dict(name='x', title='X', form='joint', metric='eval/loss', arms=arms)
  found = lawful.find(spec | {'held_out': (last,)}, rows)
  kept = lawful.record(found)
  assert kept['runs'] == 26 and kept['error'] < 1e-5
  (unseen,) = kept['unseen']
  assert unseen['residual'] == pytest.approx(math.log(1.05), abs=1e-3)
  assert kept['residuals'].keys() >= {'6000', 'E = 4', '16.0 million tokens'}
  assert '+5' not in lawful.told(found)[0].split('not see')[0]
  assert kept['corner'] is None  # it is the run that is unseen
  bent = lawful.find(spec | {'held_out': ()}, rows)
  off = lawful.record(bent)['corner']
  assert off == pytest.approx(math.log(1.05), abs=1e-3)
  assert 'most experts and tokens, it is off by 4.88%' in lawful.told(bent)[0]
  # What the runs leave open is said.
  fixed = dataclasses.replace(
    found.law, intervals=dict.fromkeys(found.law.intervals, (1.0, 2.0))
  )
  say = lambda **of: lawful.told(
    dataclasses.replace(
      found,
      law=dataclasses.replace(fixed, intervals=fixed.intervals | of),
    )
  )[0]
  assert 'do not fix' not in say()
  assert 'do not fix `alpha`, `c`:' in say(c=(-8.0, -1.0), alpha=(-0.1, 0.1))
  assert len(lawful.draw(found).axes) == 3
  assert lawful.find(spec | {'held_out': ()}, rows[:6]) is None
  assert lawful.find(spec | {'held_out': ()}, []) is None
