"""MoE-X: how few units would fire, by the error function."""

import math

import numpy as np

from tests.methods import Row
from tests.oracles import softmax_of_chosen


def moe_x(x_TD, params, bias_E, seen, *, k=2):
  logits = np.zeros((len(x_TD), len(bias_E)))
  for t, x_D in enumerate(x_TD):
    for e in range(len(bias_E)):
      mean = seen['mean'][e] @ x_D
      deviation = math.sqrt(2 * sum(seen['variance'][e] * x_D**2))
      logits[t, e] = -math.erf(mean / deviation)
  return softmax_of_chosen(logits, bias_E, k)


ROWS = (
  Row('moe_x()', '2503.07639', moe_x, always=True, extremes=True, context=True),
)
