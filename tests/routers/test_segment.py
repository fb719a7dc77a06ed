"""Segment routing: one choice for every `size` tokens, laid end to end."""

import numpy as np

from tests.methods import Row
from tests.oracles import Choice, most_probable


def segment(x_TD, params, bias_E, seen, *, size, k=1):
  parts = []
  for s in range(0, len(x_TD), size):
    logits = x_TD[s : s + size].reshape(1, -1) @ params['kernel']
    one = most_probable(logits, bias_E, k)
    if k > 1:
      one.weight /= one.weight.sum()
    parts += [one] * size
  stack = lambda name: np.concatenate([getattr(p, name) for p in parts])
  return Choice(*map(stack, ('expert', 'weight', 'probs', 'logits')))


ROWS = (
  Row(
    'segment(size=3, k=2)',
    '2601.21641',
    segment,
    always=True,
    extremes=True,
    causal=False,
    context=True,
    permutes=False,
    initial=lambda r, E, D: {'kernel': 0.1 / (r.size * D)},
  ),
)
