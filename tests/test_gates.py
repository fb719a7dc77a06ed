"""Arithmetic of gates, and the routers whose gates are smooth steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax import registry, types
from moe_jax.balancing import base as balancing
from moe_jax.kernels import gates
from tests import routing


def test_shares_of_tiny_gates():
  """1e-25 and 3e-25: a quarter, 3 / 16 / 1e-25 for its slope; 0 / 0 is 0."""
  first = jax.jit(jax.value_and_grad(lambda v: gates.shares(v)[0]))
  value, slope = first(np.array([1e-25, 3e-25, 0], np.float32))
  np.testing.assert_allclose(value, 0.25, rtol=1e-6)
  np.testing.assert_allclose(slope, [1.875e24, -0.625e24, -0.625e24], rtol=1e-5)
  value, slope = first(np.zeros(3, np.float32))
  assert value == 0 and (slope == 0).all()
  # The same of a squared coefficient of variation: (1 / 2)^2, of any unit.
  cv = jax.jit(jax.value_and_grad(lambda v: balancing.squared_cv(v)[0]))
  for unit in (1.0, 1e-20):
    value, slope = cv(np.array([[unit, 3 * unit]], np.float32))
    np.testing.assert_allclose(value, 0.25, rtol=1e-6)
    np.testing.assert_allclose(slope * unit, [[-0.375, 0.125]], rtol=1e-5)


def test_root_of_softplus_is_smooth_all_the_way():
  """Half of log softplus; x itself below; slopes between 1 and 0."""
  x = np.array([-200.0, -40.0, -16.1, -15.9, -5.0, 0.0, 5.0, 200.0])
  both = jax.jit(jax.vmap(jax.value_and_grad(gates.log_softplus)))
  value, slope = both(np.float32(x))
  soft = np.log1p(np.exp(x))
  np.testing.assert_allclose(value, np.log(soft), rtol=1e-6)
  np.testing.assert_allclose(slope, 1 / (1 + np.exp(-x)) / soft, rtol=1e-5)


def test_smooth_step():
  step = lambda x: gates.smooth_step(jnp.float32(x), 1.0)
  for x, want in (
    (-9, 0),
    (-0.5, 0),
    (-0.25, 0.15625),
    (0.25, 0.84375),
    (9, 1),
  ):
    assert step(x) == want
  assert jax.grad(step)(0.0) == 1.5
  assert jax.grad(lambda x: gates.smooth_step(x, 0.5))(0.0) == 3


@pytest.mark.parametrize('spec', ['dselect_k(k=2)', 'comet(k=2)'])
def test_smooth_gates_are_dense_then_sparse(spec):
  """All experts at the start, at most k once every step is saturated."""
  router = registry.build('routers', spec)
  x_TD = np.float32(np.random.default_rng(3).normal(size=(40, 6)))
  params = router.init(jax.random.key(0), 5, 6)
  ctx = types.Context(None, jnp.ones(40, bool), jnp.zeros(5))
  used = lambda r: (routing.choices(r) < 5).sum(1)
  r = jax.jit(router)(params, x_TD, ctx)
  assert used(r).sum() == 40 * 5
  hard = jax.tree.map(lambda v: 1e5 * v, params)
  hard = {
    k: v if k in ('bits', 'splits') else params[k] for k, v in hard.items()
  }

  @jax.jit
  def total(params):
    r = router(params, x_TD, ctx)
    return (r.weight_N**2).sum(), r

  (_, r), grad = jax.value_and_grad(total, has_aux=True)(hard)
  assert used(r).max() <= 2 and used(r).mean() > 1
  for leaf in jax.tree.leaves(grad):
    assert np.isfinite(leaf).all()
  np.testing.assert_allclose(r.terms['selector_entropy'], 0, atol=1e-4)
