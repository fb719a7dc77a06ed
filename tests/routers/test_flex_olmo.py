"""FlexOlmo: softmax of logits with biases not above 0, the k largest."""

import numpy as np

from tests.lazy import routing
from tests.methods import Row
from tests.oracles import Choice, linear, softmax


def flex_olmo(x_TD, params, bias_E, seen, *, k=2):
  logits = linear(x_TD, params)
  T, E = logits.shape
  for t in range(T):
    for e in range(1, E):
      logits[t, e] += min(float(params['bias'][e]), 0.0)
  probs = softmax(logits)
  expert, weight = np.zeros((T, k), int), np.zeros((T, k))
  for t in range(T):
    best = sorted(range(E), key=lambda e: (-(probs[t, e] + bias_E[e]), e))[:k]
    expert[t], weight[t] = best, probs[t, best]
  return Choice(expert, weight, probs, logits)


def initial(router, E, D):
  return {'kernel': 0.1 / D, 'bias': np.zeros(E)}


ROWS = (Row('flex_olmo(k=2)', '2507.07024', flex_olmo, initial=initial),)
ERRORS = {
  'flex_olmo(k=9)': 'k=9 exceeds num_experts=8',
  'flex_olmo(k=1, renormalize=True)': 'flex_olmo: k=1 makes every',
}


def test_biases_only_hold_back_and_never_the_public_expert():
  rng, E = np.random.default_rng(0), 8
  x, kernel = rng.normal(size=(64, 6)), np.float32(rng.normal(size=(6, E)))
  of = lambda *bias: routing.route(
    'flex_olmo(k=1)', x, {'kernel': kernel, 'bias': np.float32(bias)}
  )
  plain = of(*np.zeros(E))
  # Above 0, and of expert 0, nothing is changed.
  same = of(-9, *np.full(E - 1, 5))
  np.testing.assert_array_equal(plain.expert_N, same.expert_N)
  np.testing.assert_array_equal(plain.weight_N, same.weight_N)
  # An owner's expert is preferred to the public one iff r x + b > r_0 x.
  b = -0.5
  pair = of(0, b, *np.full(E - 2, -1e3))
  wanted = x @ kernel[:, 1] + b > x @ kernel[:, 0]
  np.testing.assert_array_equal(pair.expert_N == 1, wanted)
  assert 5 < wanted.sum() < (x @ kernel[:, 1] > x @ kernel[:, 0]).sum()


def test_renormalised_it_is_a_softmax_over_the_chosen():
  """gpt-oss's, where its biases are of the others and not above 0."""
  rng, E = np.random.default_rng(1), 8
  x, kernel = rng.normal(size=(32, 6)), np.float32(rng.normal(size=(6, E)))
  params = {'kernel': kernel, 'bias': -np.arange(E, dtype=np.float32) / 4}
  a = routing.route('flex_olmo(k=3, renormalize=True)', x, params)
  b = routing.route('gpt_oss(k=3)', x, params)
  np.testing.assert_array_equal(a.expert_N, b.expert_N)
  np.testing.assert_allclose(a.weight_N, b.weight_N, rtol=1e-5)
