"""Rules of routers with as many experts a token as it takes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax import registry
from moe_jax.balancing import base as balancing
from tests import routing


def sums(gates_TE):
  T = len(gates_TE)
  r = routing.by_logits('relu()', gates_TE)
  mask_GT = jnp.arange(T)[None] < T - 1  # the last is padding
  return balancing.Sums(jax.tree.map(lambda v: v[None], r), mask_GT, 1)


def test_relu_loss_by_hand():
  """Two real tokens: f = E / (k T) (2, 1, 0), means (1.5, 0.5, 0)."""
  rule = registry.build('balancing', 'relu_loss(k=1.5, start=0.5)')
  gates = [[1.0, 1.0, -1.0], [2.0, -3.0, -1.0], [9.0, 9.0, 9.0]]
  stats = rule.stats(sums(jnp.array(gates)))
  want = 0.5 * 3 / (1.5 * 2) * (2 * 1.5 + 1 * 0.5)
  got = rule.loss(stats, rule.init(3), {})
  np.testing.assert_allclose(got, [want], rtol=1e-6)


@pytest.mark.parametrize(('k', 'change'), [(1, 1.2), (1.5, 1.0), (2, 1 / 1.2)])
def test_relu_loss_seeks_its_sparsity(k, change):
  rule = registry.build('balancing', f'relu_loss(k={k}, start=0.5)')
  gates = [[1.0, 1.0, -1.0], [2.0, -3.0, -1.0], [9.0, 9.0, 9.0]]
  stats = jax.tree.map(lambda v: v[0], rule.stats(sums(jnp.array(gates))))
  np.testing.assert_allclose(
    rule.update(rule.init(3), stats), 0.5 * change, rtol=1e-6
  )


def test_relu_loss_stays_finite():
  """A factor is never lost, and counts of 2^30 tokens do not overflow."""
  rule = registry.build('balancing', 'relu_loss(k=1)')
  idle = {'used': jnp.zeros(4, jnp.int32), 'tokens': jnp.int32(8)}
  busy = {'used': jnp.full(4, 8, jnp.int32), 'tokens': jnp.int32(8)}
  assert 0 < rule.update(jnp.float32(1e-30), idle) <= 1e-29
  assert rule.update(jnp.float32(1e30), busy) <= 2e30
  many = {
    'used': jnp.full(4, 2**30, jnp.int32),
    'tokens': jnp.int32(2**30),
    'gates': jnp.full(4, 2.0**30),
  }
  np.testing.assert_allclose(rule.loss(many, 1.0, {}), 16.0, rtol=1e-6)


def test_selector_loss_needs_selectors():
  rule = registry.build('balancing', 'selector_loss(reach=0.1)')
  x = np.random.default_rng(3).normal(size=(40, 6))
  mask = np.ones((1, 40), bool)
  of = lambda s: jax.tree.map(lambda v: v[None], routing.route(s, x, E=5))
  r = of('comet()')
  with pytest.raises(ValueError, match='no selector_reach; it goes with dsel'):
    rule.stats(balancing.Sums(r, mask, 1))
  r = of('dselect_k()')
  stats = rule.stats(balancing.Sums(r, mask, 1))
  want = np.mean(r.terms['selector_entropy'] + 0.1 * r.terms['selector_reach'])
  np.testing.assert_allclose(rule.loss(stats, None, {}), [want], rtol=1e-5)


@pytest.mark.parametrize(
  ('spec', 'message'),
  [
    ('selector_loss(reach=-1)', 'reach=-1 is negative'),
    ('relu_loss(growth=1)', 'growth=1 must be above 1'),
    ('relu_loss(k=0)', 'k=0 must be above 0'),
  ],
)
def test_errors(spec, message):
  with pytest.raises(ValueError, match=message):
    registry.build('balancing', spec)
