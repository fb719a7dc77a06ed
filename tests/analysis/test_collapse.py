"""Experts that are dead, starved or always on."""

import numpy as np

from moe_jax.analysis import metrics
from tests.analysis import synthetic


def test_each_kind_is_found(tmp_path):
  rng = np.random.default_rng(0)
  n = 3_000
  even = synthetic.choose(rng, np.full((n, 6), 1 / 6), 2)
  bad = np.stack([np.full(n, 4), rng.integers(0, 3, n)], 1)
  bad[:5, 1] = 5
  made = synthetic.write(tmp_path, np.stack([even, bad], 1))
  found = metrics.measure(made, ('collapse()',))
  found = {k.partition('/')[2]: v for k, v in found.items()}
  assert found['dead_experts'] == [[], [3]]
  assert found['starved_experts'] == [[], [5]]
  assert found['always_on_experts'] == [[], [4]]
  assert [found[f'{k}_value'] for k in ('dead', 'starved', 'always_on')] == [
    [0, 1]
  ] * 3
  loads = [[(v == e).sum() for e in range(6)] for v in (even, bad)]
  assert found['load'] == loads
  wanted = [max(x) / np.mean(x) for x in loads]
  np.testing.assert_allclose(found['max_load_value'], wanted)
  assert found['max_load_value'][1] > 2.9 > 1.1 > found['max_load_null'][1]
  assert found['dead_null'] == [0, 0]


def test_in_a_short_text_experts_without_a_token_are_chance(tmp_path):
  rng = np.random.default_rng(1)
  expert = rng.integers(0, 64, (100, 1, 1))
  made = synthetic.write(tmp_path, expert, {'experts': (64,)})
  found = synthetic.measured(made, 'collapse()')
  # Of 64 experts 64 (63 / 64)^100 = 13.2 get none of 100 tokens.
  np.testing.assert_allclose(found['dead_null'], 13.2, atol=1.5)
  assert abs(found['dead_value'][0] - 13.2) < 8


def test_layers_may_differ_in_experts(tmp_path):
  expert = np.stack([np.arange(90) % 2, np.arange(90) % 5], 1)[..., None]
  made = synthetic.write(tmp_path, expert, {'experts': (2, 5)})
  found = metrics.measure(made, ('collapse()',))
  assert found['collapse/dead_value'] == [0, 0]
  assert found['collapse/max_load_value'] == [1, 1]
