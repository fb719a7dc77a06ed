"""Prototype routing: the experts whose given centroids are nearest."""

import math

import numpy as np
import pytest

from tests.lazy import jax, routing
from tests.methods import Row
from tests.oracles import softmax_of_chosen


def prototype(
  x_TD, params, bias_E, seen, *, k=2, nearest=True, seed=0, layer=1
):
  """Distances by their definition; softmax over the chosen ones."""
  key = jax.random.fold_in(jax.random.key(seed), layer)
  center = np.float64(jax.random.normal(key, (len(bias_E), x_TD.shape[1])))
  sign = -1 if nearest else 1
  z = np.array([[sign * math.dist(a, c) for c in center] for a in x_TD])
  return softmax_of_chosen(z, bias_E, k)


ROWS = (
  Row('prototype()', '2410.10469', prototype, extremes=True, context=True),
)
ERRORS = {'prototype(k=9)': 'prototype: k=9 exceeds num_experts=8'}
E, D = 4, 6


def test_prototypes_of_a_file(tmp_path):
  center = np.random.default_rng(0).normal(size=(2, E, D))
  path = str(tmp_path / 'centroids.npy')
  np.save(path, center)
  for layer, of in ((0, 0), (1, 1), (5, 1)):
    route = lambda options, x=center[of] + 0.01, l=layer: routing.choices(
      routing.route(f'prototype({options}, path={path!r})', x, E=E, layer=l)
    )
    np.testing.assert_array_equal(route('k=1')[:, 0], np.arange(E))
    assert (route('k=1, nearest=False')[:, 0] != np.arange(E)).all()
  with pytest.raises(ValueError, match=r'wanted is \(MoE layers, 4 experts, w'):
    routing.route(f'prototype(path={path!r})', np.zeros((3, D + 1)), E=E)


def test_farthest_prototypes():
  """The published code's sign, in chosen experts and weights."""
  x = np.random.default_rng(1).normal(size=(32, D))
  options = {'k': 3, 'nearest': False, 'seed': 4}
  spec = 'prototype(k=3, nearest=False, seed=4)'
  r = routing.route(spec, x, E=E, layer=2)
  want = prototype(x, {}, np.zeros(E), {}, layer=2, **options)
  np.testing.assert_array_equal(routing.choices(r), want.expert)
  np.testing.assert_allclose(routing.weights(r), want.weight, rtol=1e-4)
  assert (want.weight[:, 0] > want.weight[:, 2]).all()
