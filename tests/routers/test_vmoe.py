"""V-MoE routing: top-k of a noisy softmax, raw weights; the smooth load."""

import math

import numpy as np

from moe_jax import registry
from tests.lazy import balancing, jax, jnp, routing, types
from tests.methods import Row
from tests.oracles import linear, most_probable, softmax


def vmoe(x_TD, params, bias_E, seen):
  """Without noise."""
  return most_probable(linear(x_TD, params), bias_E, 2)


ROWS = (Row('vmoe()', '2106.05974', vmoe, always=True, noisy=True),)
ERRORS = {
  'vmoe(noise_std=0)': 'noise_std=0 must be above 0; without noise this is',
  'vmoe(k=0)': 'vmoe: k=0 must be a whole number from 1',
}


def test_noise_and_smooth_load():
  """Noise of deviation 1 / E; the load is what drawing again would choose."""
  logits = np.array([0.3, 0.25, 0.1, -0.1])
  expert, weight, r = routing.many('vmoe(k=2)', logits, n=20000)
  noise = np.asarray(r.logits_TE) - logits
  np.testing.assert_allclose(noise.std(0), 0.25, rtol=0.03)
  np.testing.assert_allclose(noise.mean(0), 0.0, atol=0.01)
  np.testing.assert_allclose(r.terms['clean_logits'][0], logits, rtol=1e-6)
  # Raw weights of the noisy softmax.
  probs = softmax(np.asarray(r.logits_TE, np.float64))
  np.testing.assert_allclose(
    weight, np.take_along_axis(probs, expert, 1), rtol=1e-5
  )
  # By hand for one token: the second largest noisy logit is the bar.
  bar = np.sort(np.asarray(r.logits_TE[0]))[-2]
  want = [0.5 * math.erfc(-(z - bar) / 0.25 / math.sqrt(2)) for z in logits]
  np.testing.assert_allclose(r.terms['smooth_load'][0], want, rtol=1e-4)
  quiet, _, r = routing.many('vmoe(k=2)', logits, n=4, train=False)
  assert (quiet == [0, 1]).all() and 'clean_logits' not in r.terms


def test_the_load_has_a_gradient_and_counts_have_none():
  rule = registry.build('balancing', 'load_loss()')
  router = registry.build('routers', 'vmoe()')
  drawn = lambda *shape: np.random.default_rng(0).normal(size=shape)
  x_TD, mask_T = np.float32(drawn(12, 8)), jnp.ones(12, bool)
  ctx = types.Context(jax.random.key(1), mask_T, jnp.zeros(4), train=True)

  @jax.jit
  @jax.grad
  def gradient(params):
    r = jax.tree.map(lambda v: v[None], router(params, x_TD, ctx))
    return balancing.evaluate([rule], r, mask_T[None], 1, (), {})[0]

  found = gradient({'kernel': np.float32(0.1 * drawn(8, 4))})
  assert np.abs(found['kernel']).max() > 1e-6
