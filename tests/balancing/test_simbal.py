"""SimBal, of the router's matrix alone."""

import numpy as np

from moe_jax import registry
from tests.lazy import balancing, jnp, types
from tests.methods import Row

G, T, D, E = 4, 6, 5, 4


def simbal(R_DE, choices=None, masks=None):
  """The sum over pairs of experts of how far their product is from I's."""
  columns = np.asarray(R_DE, np.float64).T
  pairs = [(i, j) for i in range(len(columns)) for j in range(len(columns))]
  return sum(abs(columns[i] @ columns[j] - (i == j)) for i, j in pairs)


ROWS = (
  Row('simbal()', '2506.14038', simbal),
  Row("simbal(scope='global')", '2506.14038', simbal),
)


def test_orthonormal_columns_cost_nothing():
  """Whatever the scope, and segments that are empty."""
  rng = np.random.default_rng(0)
  R_DE = rng.normal(size=(D, E))
  mask_GT = jnp.arange(G)[:, None] < jnp.array([4] * (T - 1) + [3])
  r = types.Routing(jnp.zeros((G, 1)), jnp.zeros((G, 1)), None, num_experts=E)
  for scope in balancing.SCOPES:
    rule = registry.build('balancing', f'simbal(scope={scope!r})')
    for kernel, want in ((R_DE, simbal(R_DE)), (np.linalg.qr(R_DE)[0], 0.0)):
      router = {'kernel': jnp.asarray(kernel, jnp.float32)}
      args = (mask_GT, 2, (), {}, None, router)
      total, losses, _ = balancing.evaluate([rule], r, *args)
      np.testing.assert_allclose(losses['simbal'], want, rtol=1e-5, atol=1e-5)
      np.testing.assert_allclose(total, 0.1 * losses['simbal'])
