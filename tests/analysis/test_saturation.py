"""Saturation: a loop over tokens, chance, and a router that settled by half."""

import numpy as np
import pytest

from moe_jax.analysis import metrics
from moe_jax.errors import UserError
from tests.analysis import synthetic


def pair(path, a, b, **fields):
  schema = {'experts': (int(max(a.max(), b.max())) + 1,) * a.shape[1]}
  first = synthetic.write(path / 'a', a, schema, **fields)
  second = synthetic.write(path / 'b', b, schema, cuts=(0.5,), **fields)
  return synthetic.measured(first, 'saturation()', second)


def test_a_loop_over_tokens(tmp_path):
  fields = dict(synthetic.small())
  a, b = fields.pop('expert'), synthetic.small(seed=1)['expert']
  found = pair(tmp_path, a, b, **fields)
  n = len(a)
  for m in range(a.shape[1]):
    sets = [({*x} - {-1}, {*y} - {-1}) for x, y in zip(a[:, m], b[:, m])]
    shared = sum(len(x & y) for x, y in sets)
    expected = {
      'top_1_value': np.mean([x == y for x, y in zip(a[:, m, 0], b[:, m, 0])]),
      'top_k_value': shared / sum(len(x) for x, _ in sets),
      'jaccard_value': np.mean([len(x & y) / len(x | y) for x, y in sets]),
    }
    # Chance: every token of one checkpoint beside every one of the other.
    first = [[x == y for y in b[:, m, 0]] for x in a[:, m, 0]]
    expected['top_1_null'] = np.mean(first)
    meet = [[len(x & y) for _, y in sets] for x, _ in sets]
    expected['top_k_null'] = np.sum(meet) / n / sum(len(x) for x, _ in sets)
    for k, v in expected.items():
      assert found[k][m] == pytest.approx(v), k
    chance = [[len(x & y) / len(x | y) for _, y in sets] for x, _ in sets]
    assert abs(found['jaccard_null'][m] - np.mean(chance)) < 0.08


def test_what_settled_by_half_is_half_saturated(tmp_path):
  """Of uneven loads: chance is far above 1 / E, and taken off."""
  rng = np.random.default_rng(0)
  n = 4000
  p_nE = np.broadcast_to([0.6, 0.2, 0.1, 0.05, 0.03, 0.02], (n, 6))
  a, b = (synthetic.choose(rng, p_nE)[:, None] for _ in range(2))
  settled = rng.random(n) < 0.5
  b[settled] = a[settled]
  document = np.arange(n) // 50
  found = pair(tmp_path, a, b, document=document)
  chance = np.sum(np.square(p_nE[0]))
  for k in ('top_1', 'top_k', 'jaccard'):
    assert found[f'{k}_null'] == pytest.approx(chance, abs=0.02)
    assert found[f'{k}_excess'] == pytest.approx(0.5, abs=0.03)
    assert found[f'{k}_low'] < 0.5 + 0.5 * chance < found[f'{k}_high']
    width = found[f'{k}_high'] - found[f'{k}_low']
    assert width == pytest.approx(4 * np.sqrt(0.72 * 0.28 / n), rel=0.3)


def test_checkpoints_of_strangers_are_at_chance(tmp_path):
  """95 % of the intervals hold what chance gives."""
  rng = np.random.default_rng(0)
  n, M, E = 2000, 40, 8
  a, b = (rng.integers(0, E, (n, M, 1)) for _ in range(2))
  found = pair(tmp_path, a, b, document=np.arange(n) // 20)
  inside = found['top_1_low'] <= found['top_1_null']
  inside &= found['top_1_null'] <= found['top_1_high']
  assert inside.sum() >= 35  # of 40; fewer have a chance of 2 %


def test_it_is_one_for_a_checkpoint_against_itself(tmp_path):
  a = synthetic.small()['expert']
  found = pair(tmp_path, a, a)
  for k in ('top_1', 'top_k', 'jaccard'):
    np.testing.assert_allclose(found[f'{k}_excess'], 1)


def test_other_layers_are_refused(tmp_path):
  a = synthetic.write(tmp_path / 'a', np.zeros((4, 2, 1), int))
  b = synthetic.write(tmp_path / 'b', np.zeros((4, 3, 1), int))
  with pytest.raises(UserError, match=r'saturation: layers and experts \(\(0'):
    metrics.measure(a, ('saturation()',), b)
