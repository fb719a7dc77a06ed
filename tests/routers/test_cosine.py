"""Cosine routing: the angle to each expert's vector."""

import math

import numpy as np

from tests.lazy import jax, routing
from tests.methods import Row
from tests.oracles import most_probable


def cosine(x_TD, params, bias_E, seen, *, k=1):
  """Cosines by the angle's definition, over the temperature."""
  low, centers = x_TD @ params['kernel'], params['experts']
  logits = np.zeros((len(low), len(centers)))
  for t, a in enumerate(low):
    for e, b in enumerate(centers):
      logits[t, e] = a @ b / math.sqrt((a @ a) * (b @ b))
  logits /= max(1 / params['sharpness'][0], 0.01)
  choice = most_probable(logits, bias_E, k)
  if k > 1:
    choice.weight /= choice.weight.sum(1, keepdims=True)
  return choice


def initial(r, E, D):
  sharpness = np.float32(1 / r.temperature)
  return {'kernel': 1 / D, 'experts': 1.0, 'sharpness': np.array(sharpness)}


ROWS = (
  Row('cosine()', '2204.09179', cosine, initial=initial),
  Row('cosine(k=2)', '2204.09179', cosine, extremes=True),
)
ERRORS = {
  'cosine(k=9)': 'k=9 exceeds num_experts=8',
  'cosine(d_low=0)': 'd_low=0 must be at least 1',
  'cosine(temperature=0.001)': 'must be at least floor=0.01',
}


def test_lengths_do_not_matter():
  drawn = lambda *shape: np.random.default_rng(len(shape)).normal(size=shape)
  params = {
    'kernel': drawn(6, 5),
    'experts': drawn(8, 5),
    'sharpness': np.array([1 / 0.3]),
  }
  params = jax.tree.map(np.float32, params)
  longer = params | {'experts': 7 * params['experts']}
  x = drawn(20, 6, 1)[..., 0]
  a = routing.route('cosine(k=2, d_low=5)', x, params)
  b = routing.route('cosine(k=2, d_low=5)', 3 * x, longer)
  np.testing.assert_array_equal(a.expert_N, b.expert_N)
  np.testing.assert_allclose(a.weight_N, b.weight_N, rtol=1e-5)
  assert np.abs(a.logits_TE).max() <= 1 / 0.3 + 1e-5
