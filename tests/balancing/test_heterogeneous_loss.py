"""MoE++'s loss."""

from tests.balances import E
from tests.methods import Row
from tests.oracles import LOCAL, shares


def heterogeneous_loss(choices, masks, *, tau=0.75):
  """Equation 7, over its least value."""
  f, P = shares(choices, masks)
  E = len(f)
  eta = [1.0] * (E - LOCAL) + [tau] * LOCAL
  least = 1 / sum(1 / v for v in eta)
  return sum(eta[e] * f[e] * P[e] for e in range(E)) / least


# Even here; the least value, 1, is where local experts have a third more.
_EVEN = (E - LOCAL + 0.75 * LOCAL) * (E - LOCAL + LOCAL / 0.75) / E**2
_SPEC = 'heterogeneous_loss()'
ROWS = (Row(_SPEC, '2410.07348', heterogeneous_loss, balanced=(_EVEN, _EVEN)),)
