"""ReMoE's loss, whose factor seeks a sparsity."""

import numpy as np
import pytest

from moe_jax import registry
from tests import balances
from tests.lazy import balancing, jnp
from tests.methods import Row

ROWS = (Row('relu_loss()', '2412.14711', state=True),)
ERRORS = {
  'relu_loss(growth=1)': 'growth=1 must be above 1',
  'relu_loss(k=0)': 'k=0 must be above 0',
}


def gates():
  """Of three tokens and experts; the last token is padding."""
  gates_GTE = np.array([[[1.0, 1, 0], [2, 0, 0], [9, 9, 9]]])
  first = np.zeros((1, 3, 1), int)
  r = balances.routing(gates_GTE, first, gates=gates_GTE)
  return r, np.array([[True, True, False]])


def test_by_hand():
  """Two real tokens: f = E / (k T) (2, 1, 0), means (1.5, 0.5, 0)."""
  got = balances.loss('relu_loss(k=1.5, start=0.5)', *gates())
  want = 0.5 * 3 / (1.5 * 2) * (2 * 1.5 + 1 * 0.5)
  np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize(('k', 'change'), [(1, 1.2), (1.5, 1.0), (2, 1 / 1.2)])
def test_it_seeks_its_sparsity(k, change):
  spec = f'relu_loss(k={k}, start=0.5)'
  rule = registry.build('balancing', spec)
  _, _, stats = balances.evaluate(spec, *gates())
  new = rule.update(rule.init(3), stats)
  np.testing.assert_allclose(new, 0.5 * change, rtol=1e-6)


def test_it_stays_finite():
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
  _, losses = balancing.losses([rule], {'relu_loss': many}, {'relu_loss': 1.0})
  np.testing.assert_allclose(losses['relu_loss'], 16.0, rtol=1e-6)
