"""gpt-oss's experts."""

import math

from tests.methods import Row


def clamped_glu(params, e, x_D, *, alpha=1.702, limit=7.0, **_):
  """One hidden unit at a time."""
  y_D = params['bo'][e].copy()
  for f in range(params['wo'].shape[1]):
    gate = params['bi_gate'][e, f]
    up = params['bi_up'][e, f]
    for d, x in enumerate(x_D):
      gate += x * params['wi_gate'][e, d, f]
      up += x * params['wi_up'][e, d, f]
    if gate > limit:
      gate = limit
    if abs(up) > limit:
      up = math.copysign(limit, up)
    swish = gate / (1 + math.exp(-alpha * gate))
    y_D += (up + 1) * swish * params['wo'][e, f]
  return y_D


ROWS = (
  Row('clamped_glu(d_ff=12)', '2508.10925', clamped_glu),
  Row('clamped_glu(d_ff=12, alpha=1.0, limit=0.5)', '2508.10925', clamped_glu),
)
