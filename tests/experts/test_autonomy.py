"""Autonomy-of-Experts' experts, whose gate has low rank."""

from tests.methods import Row
from tests.oracles import ACTIVATIONS


def autonomy(params, e, x_D, **_):
  """Algorithm 2."""
  gate = (x_D @ params['down'][e]) @ params['wi_gate'][e]
  hidden = ACTIVATIONS['silu'](gate) * (x_D @ params['wi_up'][e])
  return hidden @ params['wo'][e]


ROWS = (Row('autonomy(d_ff=12, d_low=5)', '2501.13074', autonomy),)
