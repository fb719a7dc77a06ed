"""Product keys: all M^2 keys written out, and compared one by one."""

import math

import numpy as np

from tests.methods import Row
from tests.oracles import Choice, largest, softmax


def product_keys(
  x_TD, params, bias_E, seen, *, heads, k, d_key, normalize=True
):
  keys, M = params['keys'], params['keys'].shape[1]
  assert keys.shape[2] == d_key // 2
  whole = [np.concatenate([keys[0, a], keys[1, b]])
           for a in range(M) for b in range(M)]  # fmt: skip
  expert, weight = [], []
  for x_D in x_TD:
    query = (x_D @ params['query']).reshape(heads, -1)
    expert.append([]), weight.append([])
    for q in query:
      if normalize:
        q = q / math.sqrt(np.mean(q**2) + 1e-6)
      scores = np.array([q @ key for key in whole])
      best = largest(scores, k)
      expert[-1] += best
      weight[-1] += list(softmax(scores[best]))
  return Choice(np.array(expert), np.array(weight))


ROWS = (
  Row(
    'product_keys(heads=3, k=2, d_key=6)',
    '2407.04153',
    product_keys,
    always=True,
    extremes=True,
    context=True,
    distinct=False,
    experts='mlp(d_ff=1)',
    initial=lambda r, E, D: {'query': 1 / D, 'keys': 2 / r.d_key},
  ),
)
