"""Autonomy-of-Experts: lengths of the experts' own projections."""

import math

import numpy as np

from tests.methods import Row
from tests.oracles import softmax_of_chosen


def autonomy(x_TD, params, bias_E, seen, *, k=2):
  down = seen['down']
  bids = np.array(
    [[math.hypot(*(x_D @ down_DJ)) for down_DJ in down] for x_D in x_TD]
  )
  return softmax_of_chosen(bids, bias_E, k)


ROWS = (
  Row(
    'autonomy()',
    '2501.13074',
    autonomy,
    always=True,
    extremes=True,
    context=True,
    experts='autonomy(d_ff=12, d_low=3)',
  ),
)
