"""AdaMoE: weights over the true experts among the chosen."""

import numpy as np

from tests.lazy import routing
from tests.methods import Row
from tests.oracles import Choice, largest, linear, softmax


def adamoe(x_TD, params, bias_E, seen, *, k=3):
  logits = linear(x_TD, params)
  probs, (T, E) = softmax(logits), logits.shape
  expert, weight = np.zeros((T, k), int), np.zeros((T, k))
  for t in range(T):
    expert[t] = largest(probs[t] + bias_E, k)
    true = [e for e in expert[t] if e < E - seen['local']]
    for j, e in enumerate(expert[t]):
      if e in true:
        weight[t, j] = probs[t, e] / sum(probs[t, i] for i in true)
  return Choice(expert, weight, probs, logits)


ROWS = (
  Row(
    'adamoe(k=3)',
    '2406.13233',
    adamoe,
    always=True,
    extremes=True,
    context=True,
    local=2,
    local_learns=False,  # weights over true experts say nothing of others
  ),
)


def test_an_unlikely_true_expert_beside_a_null_one():
  weight, _, slope = routing.slopes('adamoe(k=2)', [[0, -1, 50]], local=1)
  np.testing.assert_array_equal(weight, [[0, 1]])
  np.testing.assert_array_equal(slope, 0)
