"""Sampled top-1: draws from the softmax in training, the best one after."""

import numpy as np

from tests.lazy import jax, jnp, routing
from tests.methods import Row
from tests.oracles import Choice, linear, most_probable, softmax


def sample_top_1(x_TD, params, bias_E, seen):
  """Evaluation: hard."""
  best = most_probable(linear(x_TD, params), bias_E, 1)
  one = np.ones_like(best.weight)
  return Choice(best.expert, one, best.probs, best.logits)


ROWS = (Row('sample_top_1()', '2403.07816', sample_top_1, noisy=True),)
ERRORS = {
  'sample_top_1(rate=-1.0)': 'rate=-1.0, least=0.5; valid: rate from 0',
  'sample_top_1(least=0.0)': 'rate=0.0001, least=0.0',
}
E, T = 4, 4000
LOGITS = np.log([0.5, 0.3, 0.15, 0.05])


def route(step=0, options='', **known):
  params = {'kernel': np.float32(LOGITS[None])}
  known = {'train': True, 'step': jnp.int32(step)} | known
  spec = f'sample_top_1({options})'
  return routing.route(spec, np.ones((T, 1), np.float32), params, E, **known)


def test_experts_are_drawn_by_their_probability():
  share = np.bincount(route().expert_N, minlength=E) / T
  np.testing.assert_allclose(share, np.exp(LOGITS), atol=0.03)


def test_weights_are_the_gates_and_sharpen():
  """The largest entry of the softmax with noise, at each step's temperature."""
  key = jax.random.fold_in(jax.random.key(1), 2)
  noise = np.asarray(jax.random.gumbel(key, (T, E)), np.float64)
  for step, tau in ((0, 1.0), (3000, np.exp(-0.3)), (9000, 0.5)):
    gate = softmax((LOGITS + noise) / tau)
    r = route(step, key=jax.random.key(1))
    np.testing.assert_array_equal(r.expert_N, gate.argmax(1))
    np.testing.assert_allclose(r.weight_N, gate.max(1), rtol=1e-4)


def test_the_router_learns():
  def total(kernel):
    x = np.ones((8, 1), np.float32)
    r = routing.route(
      'sample_top_1()', x, {'kernel': kernel}, E, train=True, step=jnp.int32(0)
    )
    return r.weight_N.sum()

  kernel = jnp.asarray(LOGITS[None], jnp.float32)
  assert np.abs(jax.grad(total)(kernel)).min() > 1e-3
