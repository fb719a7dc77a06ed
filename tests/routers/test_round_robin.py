"""Round robin: dealt like cards."""

import numpy as np

from tests.lazy import routing
from tests.methods import Row
from tests.oracles import Choice


def round_robin(x_TD, params, bias_E, seen, *, k=1):
  expert, E, turn = np.zeros((len(x_TD), k), int), len(bias_E), 0
  for t in range(len(x_TD)):
    for j in range(k):
      expert[t, j], turn = turn, (turn + 1) % E
  return Choice(expert, np.full(expert.shape, 1 / k))


ROWS = (Row('round_robin(k=3)', '', round_robin, context=True, permutes=False),)
ERRORS = {'round_robin(k=9)': 'k=9 exceeds num_experts=8'}


def test_even():
  for T, E, k in ((12, 8, 1), (13, 8, 2), (5, 3, 3)):
    r = routing.route(f'round_robin(k={k})', np.zeros((T, 4)), E=E)
    load = np.bincount(r.expert_N, minlength=E)
    assert load.sum() == T * k and load.max() - load.min() <= 1
