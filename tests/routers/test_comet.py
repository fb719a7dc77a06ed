"""COMET: each tree from its leaves to the root, by parents."""

import math

import numpy as np

from tests.lazy import jax, jnp, routing
from tests.methods import Row
from tests.oracles import every_gate, smooth_step, softmax


def comet(x_TD, params, bias_E, seen, *, k=2, width=1.0):
  T, E = len(x_TD), len(bias_E)
  gates = np.zeros((T, E))
  for t in range(T):
    z = x_TD[t] @ params['splits'] + params['split_bias']
    a = x_TD[t] @ params['leaves']
    score = np.full((k, E), -np.inf)
    for j in range(k):
      for e in range(E):
        node, reach = e + E - 1, 1.0
        while node:
          parent = (node - 1) // 2
          s = smooth_step(z[j * (E - 1) + parent], width)
          reach *= s if node == 2 * parent + 1 else 1 - s
          node = parent
        if reach > 0:
          score[j, e] = a[j * E + e] + math.log(reach)
    gates[t] = softmax(score.reshape(-1)).reshape(k, E).sum(0)
  return every_gate(gates, bias_E)


def initial(r, E, D):
  uniform = (r.width / 100) ** 2 / 3
  return {'splits': uniform, 'split_bias': uniform, 'leaves': 0.1 / D}


ROWS = (
  Row(
    'comet()',
    '2306.02824',
    comet,
    always=True,
    extremes=True,
    initial=initial,
  ),
  Row('comet(k=3, width=0.3)', '2306.02824', comet),
)
ERRORS = {'comet(width=0)': 'width=0 must be above 0'}
X = np.random.default_rng(3).normal(size=(40, 6))


def test_weights_sum_to_one():
  r = routing.route('comet(k=3, width=0.02)', X, E=5)
  np.testing.assert_allclose(routing.weights(r).sum(1), 1, rtol=1e-5)


def test_the_score_of_a_leaf_out_of_reach_is_ignored():
  """All go left, to the first node of the lowest level; another shines."""
  params = {
    'splits': jnp.zeros((6, 4)),
    'split_bias': jnp.full(4, 9.0),
    'leaves': jnp.zeros((6, 5)).at[:, 0].set(1000.0),
  }
  r = routing.route('comet(k=1)', np.ones((40, 6)), params, E=5)
  np.testing.assert_array_equal(routing.choices(r)[:, 0], 3)
  np.testing.assert_allclose(routing.weights(r)[:, 0], 1)


def test_a_leaf_that_is_hardly_reached_is_found():
  """Two steps of 3 x 2^-48 each, and a score of e^200 at the end."""
  hardly = -(0.5 - 2.0**-24)
  params = {
    'splits': jnp.zeros((1, 3)),
    'split_bias': jnp.array([hardly, hardly, 0.0]),
    'leaves': jnp.array([[200.0, 0.0, 0.0, 0.0]]),
  }
  weight = lambda p: routing.route('comet(k=1)', [[1.0]], p, E=4).weight_N
  np.testing.assert_allclose(weight(params), [1, 0, 0, 0], atol=1e-6)
  for leaf in jax.tree.leaves(jax.jit(jax.jacrev(weight))(params)):
    assert np.isfinite(leaf).all()
