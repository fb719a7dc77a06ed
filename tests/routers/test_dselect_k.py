"""DSelect-k: each selector reads the expert's number bit by bit."""

import math

import numpy as np

from tests.lazy import routing
from tests.methods import Row
from tests.oracles import every_gate, smooth_step, softmax


def dselect_k(x_TD, params, bias_E, seen, *, k=2, width=1.0):
  """The lowest bit first."""
  T, E = len(x_TD), len(bias_E)
  bits = math.ceil(math.log2(E))
  gates = np.zeros((T, E))
  for t in range(T):
    mix = softmax(x_TD[t] @ params['mix'])
    z = x_TD[t] @ params['bits']
    for j in range(k):
      for e in range(E):
        r = 1.0
        for b, digit in enumerate(reversed(format(e, f'0{bits}b'))):
          s = smooth_step(z[j * bits + b], width)
          r *= s if digit == '1' else 1 - s
        gates[t, e] += mix[j] * r
  return every_gate(gates, bias_E)


def initial(r, E, D):
  return dict.fromkeys(('bits', 'mix'), (r.width / 100) ** 2 / 3)  # uniform


ROWS = (
  Row(
    'dselect_k()',
    '2106.03760',
    dselect_k,
    always=True,
    extremes=True,
    initial=initial,
  ),
  Row('dselect_k(k=3, width=0.3)', '2106.03760', dselect_k),
)
ERRORS = {'dselect_k(width=0)': 'width=0 must be above 0'}


def test_what_lies_on_no_expert_is_lost():
  """Five experts and three bits: at the start 5 of 8 numbers exist."""
  x = np.random.default_rng(3).normal(size=(40, 6))
  r = routing.route('dselect_k()', x, E=5)
  total = routing.weights(r).sum(1)
  np.testing.assert_allclose(total, 5 / 8, atol=0.02)
  np.testing.assert_allclose(r.terms['selector_reach'], 2 * 8 / 5, atol=0.1)
