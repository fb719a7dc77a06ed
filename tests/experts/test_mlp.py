"""Two-layer experts."""

from tests.methods import Row
from tests.oracles import ACTIVATIONS


def mlp(params, e, x_D, *, activation='relu', bias=False, **_):
  h = x_D @ params['wi'][e] + (params['bi'][e] if bias else 0)
  y = ACTIVATIONS[activation](h) @ params['wo'][e]
  return y + (params['bo'][e] if bias else 0)


ROWS = (
  Row('mlp(d_ff=12)', '1706.03762', mlp),
  Row("mlp(d_ff=12, activation='gelu', bias=True)", '1706.03762', mlp),
  Row("mlp(d_ff=12, activation='gelu_exact')", '1706.03762', mlp),
)
ERRORS = {"mlp(activation='swish')": "'swish'; valid: gelu, gelu_exact"}
