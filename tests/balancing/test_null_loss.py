"""AdaMoE's loss."""

from tests.methods import Row
from tests.oracles import LOCAL, shares


def null_loss(choices, masks):
  """Every null expert counts as their mean."""
  f, P = shares(choices, masks)
  E = len(f)
  mean = sum(f[e] for e in range(E - LOCAL, E)) / LOCAL
  true = sum(f[e] * P[e] for e in range(E - LOCAL))
  return E * (true + sum(mean * P[e] for e in range(E - LOCAL, E)))


ROWS = (Row('null_loss()', '2406.13233', null_loss),)
