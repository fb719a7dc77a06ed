"""gpt-oss: softmax over the k largest of biased logits."""

import numpy as np

from tests.lazy import routing
from tests.methods import Row
from tests.oracles import linear, softmax_of_chosen


def gpt_oss(x_TD, params, bias_E, seen, *, k):
  logits = linear(x_TD, params) + params['bias']
  return softmax_of_chosen(logits, bias_E, k)


ROWS = (
  Row(
    'gpt_oss(k=3)',
    '2508.10925',
    gpt_oss,
    initial=lambda r, E, D: {'kernel': 0.1 / D, 'bias': np.zeros(E)},
  ),
)
ERRORS = {
  'gpt_oss(k=1)': 'gpt_oss: k=1 makes every weight 1',
  'gpt_oss(k=9)': 'k=9 exceeds num_experts=8',
}


def test_it_is_renormalised_top_k_of_the_softmax():
  rng, E = np.random.default_rng(0), 8
  x, kernel = rng.normal(size=(64, 6)), np.float32(rng.normal(size=(6, E)))
  of = lambda bias, **known: routing.route(
    'gpt_oss(k=2)', x, {'kernel': kernel, 'bias': np.float32(bias)}, **known
  )
  a = of(np.zeros(E))
  b = routing.route('top_k(k=2)', x, {'kernel': kernel})
  np.testing.assert_array_equal(a.expert_N, b.expert_N)
  np.testing.assert_allclose(a.weight_N, b.weight_N, rtol=1e-5)
  # Its bias is part of the weight; the selection bias is not.
  bias = np.arange(E) / 4
  c, d = of(bias), of(bias, selection_bias_E=np.full(E, np.float32(3)))
  assert np.abs(c.weight_N - a.weight_N).max() > 0.1
  np.testing.assert_array_equal(c.weight_N, d.weight_N)
