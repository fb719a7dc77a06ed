"""Replay: the experts given, with the router's own probabilities."""

import numpy as np

from tests.methods import Row
from tests.oracles import Choice, linear, softmax


def replay(x_TD, params, bias_E, seen, *, renormalize=True):
  logits = linear(x_TD, params)
  probs, E = softmax(logits), len(bias_E)
  expert = np.array(seen['forced_TK'])
  weight = np.zeros(expert.shape)
  for t, row in enumerate(expert):
    for j, e in enumerate(row):
      if 0 <= e < E:
        weight[t, j] = probs[t, e]
      else:
        expert[t, j] = E
    if renormalize and weight[t].sum():
      weight[t] /= weight[t].sum()
  return Choice(expert, weight, probs, logits)


ROWS = (Row('replay()', '', replay, always=True, extremes=True, context=True),)
