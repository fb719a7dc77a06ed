"""Gated experts."""

from tests.methods import Row
from tests.oracles import ACTIVATIONS


def glu(params, e, x_D, *, activation='silu', bias='none', **_):
  gate = ACTIVATIONS[activation](x_D @ params['wi_gate'][e])
  hidden = gate * (x_D @ params['wi_up'][e])
  if bias == 'multiplicative':
    hidden = hidden * params['bias'][e]
  elif bias == 'additive':
    hidden = hidden + params['bias'][e]
  return hidden @ params['wo'][e]


_MULTIPLIED = "glu(d_ff=12, activation='gelu', bias='multiplicative')"
ROWS = (
  Row('glu(d_ff=12)', '2002.05202', glu),
  Row("glu(d_ff=12, activation='gelu')", '2002.05202', glu),
  Row(_MULTIPLIED, '2202.08906', glu),
  Row("glu(d_ff=12, bias='additive')", '2202.08906', glu),
)
