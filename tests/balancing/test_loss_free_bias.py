"""A bias that follows the load, from exact counts."""

import numpy as np

from moe_jax import registry
from tests import balances
from tests.balances import E
from tests.lazy import balancing, jax, jnp
from tests.methods import Row

_PROPORTIONAL = "loss_free_bias(update_by='proportional', centered=True)"
ROWS = (
  Row('loss_free_bias()', '2408.15664', state=True),
  Row(_PROPORTIONAL, '2408.15664', state=True),
)
ERRORS = {
  "loss_free_bias(update_by='size')": "update_by='size'; valid: sign, pr",
  'loss_free_bias(rate=-0.1)': 'rate=-0.1 must be 0 or above',
}


def test_it_follows_the_load():
  rule = registry.build('balancing', 'loss_free_bias(rate=0.5)')
  r, choices, mask_GT = balances.uneven()
  _, loss, stats = balances.evaluate('loss_free_bias(rate=0.5)', r, mask_GT)
  assert loss is None
  load = np.zeros(E, int)
  for c, m in zip(choices, mask_GT):
    np.add.at(load, c.expert[m].reshape(-1), 1)
  np.testing.assert_array_equal(stats['load'], load)
  assert stats['load'].dtype == jnp.int32
  states, stats = balancing.init_states([rule], E), {'loss_free_bias': stats}
  new = balancing.update_states([rule], states, stats)
  want = 0.5 * np.sign(load.mean() - load)
  np.testing.assert_array_equal(new['loss_free_bias'], want)
  np.testing.assert_array_equal(balancing.selection_bias([rule], new, E), want)
  # A stack of layers updates each on its own.
  stack = lambda v: jnp.stack([v, v[::-1]])
  both = balancing.update_states(
    [rule], jax.tree.map(stack, states), jax.tree.map(stack, stats)
  )
  np.testing.assert_array_equal(both['loss_free_bias'][1], want[::-1])


def update(spec, load):
  rule = registry.build('balancing', spec)
  bias = rule.init(len(load))
  return np.asarray(rule.update(bias, {'load': jnp.asarray(load, jnp.int32)}))


def test_loss_free_updates():
  """By hand: loads of mean 2.5; centred changes add up to 0."""
  load = [1, 2, 2, 5]
  signs = [0.1, 0.1, 0.1, -0.1]
  np.testing.assert_allclose(update('loss_free_bias(rate=0.1)', load), signs)
  np.testing.assert_allclose(
    update('loss_free_bias(rate=0.1, centered=True)', load),
    [0.05, 0.05, 0.05, -0.15],
    atol=1e-8,
  )
  spec = "loss_free_bias(rate=0.1, update_by='proportional')"
  relative = [0.06, 0.02, 0.02, -0.1]
  np.testing.assert_allclose(update(spec, load), relative, atol=1e-8)
  # The batch's size does not matter, nor does an empty one.
  np.testing.assert_allclose(
    update(spec, [1000 * v for v in load]), relative, atol=1e-8
  )
  np.testing.assert_array_equal(update(spec, [0] * 4), [0] * 4)
  np.testing.assert_array_equal(update('loss_free_bias()', [7] * 4), [0] * 4)


def test_loss_free_updates_at_the_largest_batches():
  """264M tokens of 8 choices over 64 experts; off the mean by one, and 5 fold.

  E times a load does not fit int32, and float32 cannot tell the mean from the
  mean and one.
  """
  E, mean = 64, 33_000_001
  assert np.float32(mean) == np.float32(mean - 1)
  load = np.full(E, mean)
  load[0] += 1
  load[1] -= 1
  load[2] += 4 * mean
  load[3:7] -= mean
  assert load.sum() == mean * E < 2**31 < E * load.max()
  want = -np.sign(load - mean)
  np.testing.assert_array_equal(update('loss_free_bias(rate=1.0)', load), want)
  spec = "loss_free_bias(rate=1.0, update_by='proportional')"
  np.testing.assert_allclose(update(spec, load)[2:7], [-4, 1, 1, 1, 1], 1e-6)
