"""BASE layers: SciPy's assignment of the real tokens to the experts' seats."""

import numpy as np
from scipy import optimize

from tests.methods import Row
from tests.oracles import Choice, linear, sigmoid, softmax


def base_layer(x_TD, params, bias_E, seen, **solver):
  logits = linear(x_TD, params)
  T, E = logits.shape
  real = np.flatnonzero(seen['mask_T'])
  seats = -(-len(real) // E)
  columns = np.repeat(logits[real] + bias_E, seats, axis=1)
  row, column = optimize.linear_sum_assignment(columns, maximize=True)
  expert = np.full((T, 1), E)
  expert[real[row], 0] = column // max(seats, 1)
  weight = np.zeros((T, 1))
  for t in real:
    weight[t] = sigmoid(logits[t, expert[t, 0]])
  return Choice(expert, weight, softmax(logits), logits)


ROWS = (
  Row(
    'base_layer(tolerance=1e-5, iterations=5000)',
    '2103.16716',
    base_layer,
    extremes=True,
    causal=False,
    train=True,
  ),
)
