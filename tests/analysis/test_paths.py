"""Paths over layers, and what a layer tells of the next."""

import collections
import math

import numpy as np
import pytest

from moe_jax.analysis import metrics
from tests.analysis import synthetic


def test_paths_are_those_of_a_loop(tmp_path):
  rng = np.random.default_rng(0)
  n, M, E, lag = 900, 3, 4, 7
  expert = rng.integers(-1, E, (n, M, 2))
  made = synthetic.write(tmp_path, expert, {'experts': (E,) * M})
  found = synthetic.measured(made, f'paths(lag={lag})')
  start = lag * (M - 1)
  own, null = collections.Counter(), collections.Counter()
  for t in range(start, n):
    own[tuple(expert[t, :, 0])] += 1
    null[tuple(expert[t - m * lag, m, 0] for m in range(M))] += 1
  for name, counts in (('value', own), ('null', null)):
    shares = [c / (n - start) for c in counts.values()]
    assert found[f'distinct_{name}'] == len(counts)
    entropy = -sum(p * math.log(p) for p in shares)
    np.testing.assert_allclose(found[f'entropy_{name}'], entropy)
  assert found['tokens'] == n - start
  assert found['sampled'] == found['null_sampled'] == 1


def test_layers_that_agree_have_few_paths(tmp_path):
  rng = np.random.default_rng(1)
  one = rng.integers(0, 6, (5_000, 1, 1))
  made = synthetic.write(tmp_path, np.concatenate([one, (one + 2) % 6, one], 1))
  found = synthetic.measured(made, 'paths()')
  assert (found['distinct_value'], found['distinct_null']) == (6, 6**3)
  np.testing.assert_allclose(found['entropy_value'], math.log(6), rtol=1e-2)
  np.testing.assert_allclose(found['entropy_null'], 3 * math.log(6), rtol=2e-2)


def test_layers_that_choose_apart_are_as_their_null(tmp_path):
  rng = np.random.default_rng(2)
  made = synthetic.write(tmp_path, rng.integers(0, 5, (5_000, 3, 1)))
  found = synthetic.measured(made, 'paths()')
  np.testing.assert_allclose(
    found['entropy_value'], found['entropy_null'], rtol=3e-3
  )


def test_beyond_the_most_the_number_is_estimated(tmp_path):
  rng = np.random.default_rng(3)
  made = synthetic.write(tmp_path, rng.integers(0, 30, (20_000, 3, 1)))
  exact = synthetic.measured(made, 'paths()')
  found = synthetic.measured(made, 'paths(most=3000)')
  assert found['sampled'] == 1 / 8
  # 1,630 paths are kept, of 13,000: a standard error of 2 %.
  for k in ('distinct_value', 'entropy_value', 'distinct_null'):
    np.testing.assert_allclose(found[k], exact[k], rtol=0.08)


def test_prefetching_is_that_of_a_loop(tmp_path):
  rng = np.random.default_rng(4)
  n, E, K, lag = 600, 3, 2, 5
  expert = synthetic.choose(rng, rng.dirichlet(np.ones(E), 2 * n), K)
  expert = expert.reshape(n, 2, K)
  expert[::9, 1, 1] = -1
  document = np.arange(n) // 40
  made = synthetic.write(tmp_path, expert, document=document)
  found = synthetic.measured(made, f'prefetch(lag={lag})')
  wanted = {'value': [], 'null': [], 'hit_value': [], 'hit_marginal': []}
  for back, judged in ((0, 0), (0, 1), (lag, 0), (lag, 1)):
    seen = np.zeros((E, E))
    pairs = []
    for t in range(back, n):
      for y in expert[t, 1][expert[t, 1] >= 0]:
        if document[t] % 2 == judged:
          pairs.append((expert[t - back, 0, 0], y))
        else:
          seen[expert[t - back, 0, 0], y] += 1
    p_y = (seen.sum(0) + 1) / (seen.sum() + E)
    p = (seen + E * p_y) / (seen.sum(1, keepdims=True) + E)
    cost = np.mean([-math.log(p[x, y]) for x, y in pairs])
    share = 1 - cost / np.mean([-math.log(p_y[y]) for _, y in pairs])
    wanted['null' if back else 'value'].append(share)
    if not back:
      hit = [y in np.argsort(-p[x])[:K] for x, y in pairs]
      loaded = [y in np.argsort(-p_y)[:K] for _, y in pairs]
      wanted['hit_value'].append(np.mean(hit))
      wanted['hit_marginal'].append(np.mean(loaded))
  np.testing.assert_allclose(found['halves'][:, 0], wanted['value'][::-1])
  for k, v in wanted.items():
    np.testing.assert_allclose(found[k], np.mean(v), err_msg=k)


@pytest.mark.parametrize('one_document', [False, True])
def test_a_layer_that_follows_the_one_before_is_foretold(
  tmp_path, one_document
):
  rng = np.random.default_rng(5)
  n, E = 8_000, 8
  first = rng.integers(0, E, n)
  second = np.where(rng.random(n) < 0.8, (3 * first) % E, rng.integers(0, E, n))
  expert = np.stack([first, second, rng.integers(0, E, n)], 1)[..., None]
  document = np.zeros(n) if one_document else np.arange(n) // 100
  made = synthetic.write(tmp_path, expert, document=document)
  found = synthetic.measured(made, 'prefetch()')
  assert found['value'][0] > 0.4
  assert found['hit_value'][0] > 0.8
  assert found['hit_marginal'][0] < 0.2
  # What knows nothing pays for what it has counted.
  assert -0.02 < found['value'][1] < 0.0
  assert abs(found['null']).max() < 0.02


def test_one_layer_has_neither_paths_nor_a_next(tmp_path):
  made = synthetic.write(tmp_path, np.zeros((90, 1, 1), int))
  found = metrics.measure(made, ('paths()', 'prefetch()'))
  assert set(found) == {'paths/undefined', 'prefetch/undefined'}
