"""Sets of distinct experts: against all sets there are."""

import itertools

import numpy as np
import pytest

from moe_jax.analysis import distinct

LOADS = {
  'even': ([1, 1, 1, 1, 1], 2),
  'uneven': ([5, 4, 3, 3, 2], 3),
  'dead': ([3, 2, 1, 0, 0], 2),
  'always on': ([4, 1, 1, 1, 1], 2),
  'all of them': ([1, 1, 1, 1, 1], 5),
  'one': ([5, 3, 2, 1, 1], 1),
}


@pytest.mark.parametrize('case', LOADS)
def test_a_loop_over_all_sets(case):
  load, K = LOADS[case]
  w = distinct.weights(load, K)
  chance, both, total = np.zeros(5), np.zeros((5, 5)), 0
  for members in itertools.combinations(range(5), K):
    p = np.prod(w[list(members)])
    total += p
    chance[list(members)] += p
    for i, j in itertools.permutations(members, 2):
      both[i, j] += p
  np.testing.assert_allclose(distinct.chances(w, K), chance / total)
  np.testing.assert_allclose(distinct.pairs(w, K), both / total, atol=1e-12)
  wanted = K * np.array(load) / sum(load)
  np.testing.assert_allclose(chance / total, wanted, atol=1e-8)


@pytest.mark.parametrize('case', LOADS)
def test_sets_that_are_drawn(case):
  load, K = LOADS[case]
  w, T = distinct.weights(load, K), 20_000
  x = distinct.draw(w, K, T, np.random.default_rng(0)).astype(int)
  assert (x.sum(-1) == K).all()
  both = x.T @ x / T
  np.fill_diagonal(both, 0)
  np.testing.assert_allclose(both, distinct.pairs(w, K), atol=0.015)


def test_what_is_drawn_of_a_sample_varies_as_all_tokens_would():
  load = np.array([[0] * 4, [0] * 4, [900, 600, 300, 200]])
  spread = {}
  for sample in (100, 1000):
    mean, drawn = distinct.pair_counts(
      load, np.ones(3), 400, sample, np.random.default_rng(0)
    )
    np.testing.assert_allclose(mean.sum(-1), load[2], atol=1e-5)
    np.testing.assert_allclose(drawn.mean(0), mean, atol=5)
    spread[sample] = drawn.std(0)[0, 1]
  assert spread[100] == pytest.approx(spread[1000], rel=0.15)
