"""Replication: planted twins are matched, strangers are at chance."""

import itertools

import numpy as np
import pytest

from moe_jax.analysis import counts, metrics
from moe_jax.errors import UserError
from tests.analysis import synthetic


def pair(path, a, b, spec='replication()', **fields):
  first = synthetic.write(path / 'a', a, **fields)
  second = synthetic.write(path / 'b', b, cuts=(0.5,), **fields)
  return synthetic.measured(first, spec, second)


def test_a_search_over_all_matches(tmp_path):
  fields = dict(synthetic.small())
  a, b = fields.pop('expert'), synthetic.small(seed=1)['expert']
  b = np.where(np.arange(240)[:, None, None] % 3 == 0, (a + 2) % 5, b)
  b[a[..., 1] == -1, 1] = -1
  found = pair(tmp_path, a, b, **fields)
  half = fields['document'] % 2
  for m in range(2):
    table = np.zeros((2, 5, 5), int)
    for t in range(240):
      for i, j in itertools.product({*a[t, m]} - {-1}, {*b[t, m]} - {-1}):
        table[half[t], i, j] += 1
    for h in (0, 1):
      score = lambda p, h=h, t=table: sum(t[h, i, j] for i, j in enumerate(p))
      best = max(
        itertools.permutations(range(5)), key=lambda p: score(p, 1 - h)
      )
      edges = (a[half == h, m] >= 0).sum()
      expected = score(best) / edges
      assert found['matched_halves'][m][h] == pytest.approx(expected)
    whole = table.sum(0)
    best = max(
      itertools.permutations(range(5)),
      key=lambda p: sum(whole[i, j] for i, j in enumerate(p)),
    )
    assert tuple(found['match'][m]) == best


def test_renumbered_experts_are_found(tmp_path):
  rng = np.random.default_rng(0)
  n, E = 3000, 6
  p_nE = np.broadcast_to([0.4, 0.2, 0.1, 0.1, 0.1, 0.1], (n, E))
  a = synthetic.choose(rng, p_nE, 2)[:, None]
  order = rng.permutation(E)
  b = order[a]
  again = rng.random(n) < 0.25  # a quarter of the tokens route as strangers
  b[again, 0] = synthetic.choose(rng, p_nE[again][:, np.argsort(order)], 2)
  found = pair(tmp_path, a, b, document=np.arange(n) // 50)
  assert np.array_equal(found['match'][0], order)
  assert found['matched_excess'] == pytest.approx(0.75, abs=0.03)
  assert found['ami_value'] > 0.3 > 10 * found['ami_null_high']


def test_strangers_are_at_chance(tmp_path):
  """Nothing is left of what the match finds in noise; 95 % of the intervals."""
  rng = np.random.default_rng(0)
  n, M = 1000, 40
  a, b = (rng.integers(0, 16, (n, M, 1)) for _ in range(2))
  found = pair(tmp_path, a, b, document=np.arange(n) // 10)
  assert abs(found['matched_excess'].mean()) < 0.004
  inside = found['ami_null_low'] <= found['ami_value']
  inside &= found['ami_value'] <= found['ami_null_high']
  assert inside.sum() >= 35


def test_adjusted_information_as_vinh_et_al_have_it():
  """Against their closed form of what chance gives."""
  from scipy import special

  rng = np.random.default_rng(0)
  table = rng.multinomial(120, [0.3, 0.1, 0.1, 0.05, 0.25, 0.2]).reshape(2, 3)
  a, b, n = table.sum(1), table.sum(0), table.sum()
  log = special.gammaln
  expected = 0
  for i, j in np.ndindex(table.shape):
    for x in range(max(1, a[i] + b[j] - n), min(a[i], b[j]) + 1):
      p = log(a[i] + 1) + log(b[j] + 1) + log(n - a[i] + 1) + log(n - b[j] + 1)
      p -= log(n + 1) + log(x + 1) + log(a[i] - x + 1) + log(b[j] - x + 1)
      p -= log(n - a[i] - b[j] + x + 1)
      expected += x / n * np.log(n * x / a[i] / b[j]) * np.exp(p)
  share = lambda c: c / n
  entropy = lambda c: -np.sum(share(c) * np.log(share(c)))
  information = entropy(a) + entropy(b) - entropy(table.reshape(-1))
  most = (entropy(a) + entropy(b)) / 2
  ami = (information - expected) / (most - expected)
  found = counts.adjusted_information(table, 4000, rng)
  assert found[0] == pytest.approx(ami, abs=0.002)
  assert found[1:].mean() == pytest.approx(0, abs=1e-9)


def test_numbers_of_experts_may_differ_and_of_layers_not(tmp_path):
  rng = np.random.default_rng(0)
  a, b = rng.integers(0, 6, (400, 1, 1)), rng.integers(0, 4, (400, 1, 1))
  found = pair(tmp_path, a, b)
  assert (found['match'][0] == -1).sum() == 2
  one = synthetic.write(tmp_path / 'c', np.zeros((4, 1, 1), int))
  two = synthetic.write(tmp_path / 'd', np.zeros((4, 2, 1), int))
  with pytest.raises(UserError, match='1 MoE layers against 2'):
    metrics.measure(one, ('replication()',), two)
