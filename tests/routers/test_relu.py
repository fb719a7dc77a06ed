"""ReLU routing: every expert above the bar, largest first."""

import numpy as np

from tests.lazy import routing
from tests.methods import Row
from tests.oracles import Choice, largest, linear


def relu(x_TD, params, bias_E, seen, *, max_choices=0):
  logits = linear(x_TD, params)
  T, E = logits.shape
  K = max_choices or E
  expert, weight = np.full((T, K), E), np.zeros((T, K))
  probs = np.zeros((T, E))
  for t in range(T):
    for j, e in enumerate(largest(logits[t] + bias_E, K)):
      if logits[t, e] + bias_E[e] > 0:
        expert[t, j], weight[t, j] = e, max(logits[t, e], 0.0)
    gates = [max(l, 0.0) for l in logits[t]]
    if sum(gates):
      probs[t] = np.array(gates) / sum(gates)
  return Choice(expert, weight, probs, logits)


ROWS = (
  Row('relu()', '2412.14711', relu, always=True, extremes=True),
  Row('relu(max_choices=2)', '2412.14711', relu),
)
ERRORS = {'relu(max_choices=9)': 'k=9 exceeds num_experts=8'}


def test_continuous_where_an_expert_comes():
  r = [routing.by_logits('relu()', [[l, 1.0]]) for l in (-1e-4, 1e-4)]
  assert [(r.expert_N < 2).sum() for r in r] == [1, 2]
  rise = r[1].weight_N.sum() - r[0].weight_N.sum()
  np.testing.assert_allclose(rise, 1e-4, rtol=1e-2)
  none = routing.by_logits('relu()', [[-1.0, -2.0]])
  assert (none.expert_N == 2).all()
