"""Placement: devices counted in a loop, planted groups, and none at random."""

import itertools

import numpy as np
import pytest

from moe_jax.analysis import placements
from tests.analysis import synthetic


def saved(expert, place):
  """The share of choices that go where the token goes already."""
  sent = [{place[e] for e in chosen if e >= 0} for chosen in expert]
  used = [[e for e in chosen if e >= 0] for chosen in expert]
  return 1 - sum(map(len, sent)) / sum(map(len, used))


def test_a_loop_over_tokens_and_over_all_placements(tmp_path):
  fields = dict(synthetic.small(K=3))
  expert = np.where(fields['expert'] == 4, -1, fields['expert'])[:, :1]
  fields['expert'] = np.sort(expert, -1)[..., ::-1]
  record = synthetic.write(tmp_path, schema={'experts': (4,)}, **fields)
  found = synthetic.measured(record, 'placement(devices=2)')
  own = fields['expert'][:, 0]
  assert found['given'][0] == pytest.approx(saved(own, [0, 0, 1, 1]))
  every = set(itertools.permutations([0, 0, 1, 1]))
  mean = np.mean([saved(own, place) for place in every])
  assert found['null'][0] == pytest.approx(mean)
  half = fields['document'] % 2
  for h in (0, 1):
    both = np.zeros((4, 4))
    for chosen in own[half != h]:
      for i, j in itertools.product(chosen[chosen >= 0], repeat=2):
        both[i, j] += 1
    place = placements.greedy(both, 2)
    assert found['halves'][0][h] == pytest.approx(saved(own[half == h], place))
  place = found['place'][0].astype(int)
  load = np.bincount(own[own >= 0], minlength=4)
  by_device = [load[place == d].sum() for d in (0, 1)]
  expected = max(by_device) / np.mean(by_device)
  assert found['max_load'][0] == pytest.approx(expected)


def test_greedy_finds_the_groups_that_there_are():
  both = np.ones((6, 6)) + np.diag([9.0, 8, 7, 6, 5, 4])
  for i, j in ((0, 5), (1, 3), (2, 4)):
    both[i, j] = both[j, i] = 3
  assert placements.greedy(both, 3).tolist() == [0, 1, 2, 1, 2, 0]


def test_planted_groups_are_worth_what_they_save(tmp_path):
  """Half of the tokens take both experts from one group of four."""
  rng = np.random.default_rng(0)
  n, E = 6000, 16
  first = rng.integers(0, E, n)
  anyone = (first + rng.integers(1, E, n)) % E
  friend = (first + 4 * rng.integers(1, 4, n)) % E  # the same rest mod 4
  second = np.where(rng.random(n) < 0.5, friend, anyone)
  expert = np.stack([first, second], -1)[:, None]
  record = synthetic.write(tmp_path, expert, document=np.arange(n) // 50)
  found = synthetic.measured(record, 'placement()')
  # Of two choices one is saved at most.
  assert found['null'] == pytest.approx(0.5 * 3 / 15)
  assert found['value'] == pytest.approx(0.5 * (0.5 + 0.5 * 0.2), abs=0.01)
  assert found['given'] == pytest.approx(0.5 * (0.5 * 0 + 0.5 * 0.2), abs=0.01)
  place = found['place'][0]
  assert all(len(set(place[g::4])) == 1 for g in range(4))


def test_noise_saves_nothing(tmp_path):
  """Few tokens, many experts: of the same tokens greedy would save much."""
  rng = np.random.default_rng(0)
  n, E, M = 400, 32, 12
  expert = rng.permuted(np.tile(np.arange(E), (n, M, 1)), axis=-1)[..., :2]
  record = synthetic.write(tmp_path, expert, document=np.arange(n) // 10)
  found = synthetic.measured(record, 'placement()')
  assert (found['value'] - found['null']).mean() == pytest.approx(0, abs=0.006)
  same = [saved(expert[:, m], found['place'][m].astype(int)) for m in range(M)]
  assert np.mean(same) > found['null'].mean() + 0.02


def test_zero_computation_experts_are_on_no_device(tmp_path):
  fields = synthetic.small(K=3)
  schema = {'experts': (5, 5), 'local': (1, 2)}
  record = synthetic.write(tmp_path, schema=schema, **fields)
  found = synthetic.measured(record, 'placement(devices=2)')
  place = found['place'][0].astype(int)
  assert sorted(place) == [-1, 0, 0, 1, 1]
  assert place[4] == -1
  own = np.where(fields['expert'][:, 0] == 4, -1, fields['expert'][:, 0])
  assert found['given'][0] == pytest.approx(saved(own, [0, 0, 1, 1]))
  # Three are left of the second layer, which two do not divide.
  assert np.isnan(found['value'][1])
