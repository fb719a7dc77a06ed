"""Expert choice: each expert's best tokens of the group."""

import math

import numpy as np

from tests.methods import Row
from tests.oracles import by_experts, largest, linear, softmax


def expert_choice(x_TD, params, bias_E, seen, *, choices):
  """Zhou et al., equation 1: each expert's largest, real tokens only."""
  logits = linear(x_TD, params)
  probs = softmax(logits)
  T, E = probs.shape
  rows, real = math.ceil(choices * T / E), np.flatnonzero(seen['mask_T'])
  chosen = [
    [real[i] for i in largest(probs[real, e], min(rows, len(real)))]
    for e in range(E)
  ]
  return by_experts(chosen, probs, logits)


ROWS = (
  Row(
    'expert_choice(choices=1.5)',
    '2202.09368',
    expert_choice,
    always=True,
    extremes=True,
    causal=False,
    by_expert=True,
  ),
)
