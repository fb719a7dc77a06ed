"""MoE++: the logits of the layer before, through a matrix of their own."""

from tests.methods import Row
from tests.oracles import linear, most_probable


def moe_plus_plus(x_TD, params, bias_E, seen, *, k=2, residual=True):
  logits = linear(x_TD, params)
  if residual:
    for t in range(len(x_TD)):
      for e in range(len(bias_E)):
        logits[t, e] += seen['carry'][t] @ params['residual'][:, e]
  return most_probable(logits, bias_E, k)


ROWS = (
  Row(
    'moe_plus_plus()',
    '2410.07348',
    moe_plus_plus,
    always=True,
    context=True,
    initial=lambda r, E, D: {'kernel': 0.1 / D, 'residual': 0.1 / E},
  ),
  Row(
    'moe_plus_plus(residual=False)',
    '2410.07348',
    moe_plus_plus,
    context=True,
  ),
)
