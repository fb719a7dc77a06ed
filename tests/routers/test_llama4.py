"""Llama 4: a sigmoid gate on the experts' inputs."""

import numpy as np

from tests.methods import Row
from tests.oracles import Choice, largest, linear, sigmoid


def llama4(x_TD, params, bias_E, seen, *, k=1):
  logits = linear(x_TD, params)
  expert = np.array([largest(l + bias_E, k) for l in logits])
  s = sigmoid(logits)
  weight = np.take_along_axis(s, expert, 1)
  probs = s / s.sum(-1, keepdims=True)
  return Choice(expert, weight, probs, logits, weight_on='input')


ROWS = (
  Row('llama4()', '', llama4, always=True, extremes=True),
  Row('llama4(k=2)', '', llama4, always=True),
)
ERRORS = {'llama4(k=9)': 'k=9 exceeds num_experts=8'}
