"""Sinkhorn routing: top-k of a softly balanced assignment."""

import numpy as np

from tests.methods import Row
from tests.oracles import Choice, largest, linear, sigmoid, softmax


def sinkhorn(
  x_TD, params, bias_E, seen, *, k=1, score='softmax', iterations=20
):
  """Rows and columns of exp(logits) scaled in turn, the columns last."""
  logits = linear(x_TD, params)
  T, E = logits.shape
  real = np.flatnonzero(seen['mask_T'])
  plan = np.exp(logits[real] + bias_E)
  for _ in range(iterations):
    for t in range(len(plan)):
      plan[t] /= plan[t].sum()
    for e in range(E):
      plan[:, e] *= len(real) / E / max(plan[:, e].sum(), 1e-300)
  expert, weight = np.full((T, k), E), np.zeros((T, k))
  gates = softmax(logits) if score == 'softmax' else sigmoid(logits)
  for i, t in enumerate(real):
    expert[t] = largest(plan[i], k)
    weight[t] = gates[t, expert[t]]
  return Choice(expert, weight, softmax(logits), logits)


ROWS = (
  Row('sinkhorn()', '2202.01169', sinkhorn, causal=False, train=True),
  Row(
    "sinkhorn(k=2, score='sigmoid')",
    '2202.01169',
    sinkhorn,
    causal=False,
    train=True,
  ),
)
