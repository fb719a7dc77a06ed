"""Routers with as many experts a token as it takes, cosine and round robin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax import registry, types
from moe_jax.balancing import base as balancing
from moe_jax.kernels import gates


def route(spec, logits_TE):
  """Routes by these logits: one-hot tokens, which the kernel maps to them."""
  logits_TE = jnp.asarray(logits_TE, jnp.float32)
  T, E = logits_TE.shape
  ctx = types.Context(
    key=None, mask_T=jnp.ones(T, bool), selection_bias_E=jnp.zeros(E)
  )
  router = registry.build('routers', spec)
  return router({'kernel': logits_TE}, jnp.eye(T), ctx)


used = lambda r: (np.asarray(r.expert_N) < r.num_experts).sum()


@pytest.mark.parametrize(
  ('strict', 'counts'), [(True, (1, 2, 3, 4)), (False, (1, 1, 2, 4))]
)
def test_top_p_at_and_above_the_mass(strict, counts):
  """Exact halves, where the paper's >= and the code's > differ."""
  logits = np.log([[0.5, 0.25, 0.125, 0.125]])
  for p, count in zip((0.4, 0.5, 0.75, 0.9), counts, strict=True):
    assert used(route(f'top_p(p={p}, strict={strict})', logits)) == count


def test_top_p_of_a_uniform_softmax():
  r = route('top_p()', np.zeros((3, 16)))
  assert used(r) == 3 * 7
  np.testing.assert_allclose(r.weight_N.sum(), 3 * 7 / 16, rtol=1e-6)
  router = registry.build('routers', 'top_p()')
  assert router.experts_per_token(16) == 7
  assert registry.build('routers', 'top_p(p=1)').experts_per_token(16) == 16
  # In floats 0.55 * 20 is above 11.
  assert registry.build('routers', 'top_p(p=0.55)').experts_per_token(20) == 11
  strict = registry.build('routers', 'top_p(p=0.5, strict=True)')
  assert strict.experts_per_token(20) == 11


def test_top_p_at_one_is_the_dense_mixture():
  logits = np.random.default_rng(0).normal(size=(5, 6))
  r = route('top_p(p=1)', logits)
  assert used(r) == 5 * 6
  by_token = np.asarray(r.weight_N).reshape(6, 5).sum(0)
  np.testing.assert_allclose(by_token, 1, rtol=1e-6)


def test_relu_is_continuous_where_an_expert_comes():
  weight = lambda l: np.asarray(route('relu()', [[l, 1.0]]).weight_N).sum()
  assert used(route('relu()', [[-1e-4, 1.0]])) == 1
  assert used(route('relu()', [[1e-4, 1.0]])) == 2
  np.testing.assert_allclose(weight(1e-4) - weight(-1e-4), 1e-4, rtol=1e-2)
  assert used(route('relu()', [[-1.0, -2.0]])) == 0


def test_cosine_ignores_lengths():
  router = registry.build('routers', 'cosine(k=2, d_low=5)')
  params = router.init(jax.random.key(0), 8, 6)
  x = jax.random.normal(jax.random.key(1), (20, 6))
  ctx = types.Context(
    key=None, mask_T=jnp.ones(20, bool), selection_bias_E=jnp.zeros(8)
  )
  a = router(params, x, ctx)
  b = router(params | {'experts': 7 * params['experts']}, 3 * x, ctx)
  np.testing.assert_array_equal(a.expert_N, b.expert_N)
  np.testing.assert_allclose(a.weight_N, b.weight_N, rtol=1e-5)
  assert np.abs(a.logits_TE).max() <= 1 / 0.3 + 1e-5


def test_round_robin_is_even():
  for T, E, k in ((12, 8, 1), (13, 8, 2), (5, 3, 3)):
    router = registry.build('routers', f'round_robin(k={k})')
    ctx = types.Context(
      key=None, mask_T=jnp.ones(T, bool), selection_bias_E=jnp.zeros(E)
    )
    load = np.bincount(router({}, jnp.zeros((T, 4)), ctx).expert_N, minlength=E)
    assert load.sum() == T * k and load.max() - load.min() <= 1


def sums(gates_TE):
  T = len(gates_TE)
  r = route('relu()', gates_TE)
  mask_GT = jnp.arange(T)[None] < T - 1  # the last is padding
  return balancing.Sums(jax.tree.map(lambda v: v[None], r), mask_GT, 1)


def test_relu_loss_by_hand():
  """Two real tokens: f = E / (k T) (2, 1, 0), means (1.5, 0.5, 0)."""
  rule = registry.build('balancing', 'relu_loss(k=1.5, start=0.5)')
  gates = [[1.0, 1.0, -1.0], [2.0, -3.0, -1.0], [9.0, 9.0, 9.0]]
  stats = rule.stats(sums(jnp.array(gates)))
  want = 0.5 * 3 / (1.5 * 2) * (2 * 1.5 + 1 * 0.5)
  np.testing.assert_allclose(
    rule.loss(stats, rule.init(3), {}), [want], rtol=1e-6
  )


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


def gate(spec, params, x_TD):
  x_TD = jnp.asarray(x_TD, jnp.float32)
  router = registry.build('routers', spec)
  E = 5
  router.check(E)
  ctx = types.Context(
    key=None,
    mask_T=jnp.ones(len(x_TD), bool),
    selection_bias_E=jnp.zeros(E),
  )
  return router, params or router.init(jax.random.key(0), E, 6), x_TD, ctx


X = np.random.default_rng(3).normal(size=(40, 6))


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
  router, params, x_TD, ctx = gate(spec, None, X)
  r = router(params, x_TD, ctx)
  assert used(r) == 40 * 5
  hard = jax.tree.map(lambda v: 1e5 * v, params)
  hard = {
    k: v if k in ('bits', 'splits') else params[k] for k, v in hard.items()
  }

  def total(params):
    r = router(params, x_TD, ctx)
    return (r.weight_N**2).sum(), r

  (_, r), grad = jax.value_and_grad(total, has_aux=True)(hard)
  per_token = (np.asarray(r.expert_N).reshape(5, 40) < 5).sum(0)
  assert per_token.max() <= 2 and per_token.mean() > 1
  for leaf in jax.tree.leaves(grad):
    assert np.isfinite(leaf).all()
  np.testing.assert_allclose(r.terms['selector_entropy'], 0, atol=1e-4)


def test_comet_weights_sum_to_one():
  router, params, x_TD, ctx = gate('comet(k=3, width=0.02)', None, X)
  r = router(params, x_TD, ctx)
  np.testing.assert_allclose(r.weight_N.reshape(5, 40).sum(0), 1, rtol=1e-5)


def test_comet_ignores_the_score_of_a_leaf_out_of_reach():
  router, params, _, ctx = gate('comet(k=1)', None, X)
  # All go left, to the first node of the lowest level; another shines.
  hard = params | {'split_bias': jnp.full(4, 9.0)}
  hard['leaves'] = jnp.zeros((6, 5)).at[:, 0].set(1000.0)
  r = router(hard, jnp.ones((40, 6)), ctx)
  np.testing.assert_array_equal(r.expert_N[:40], 3)
  np.testing.assert_allclose(r.weight_N[:40], 1)


def test_dselect_k_loses_what_lies_on_no_expert():
  """Five experts and three bits: at the start 5 of 8 numbers exist."""
  router, params, x_TD, ctx = gate('dselect_k()', None, X)
  r = router(params, x_TD, ctx)
  total = r.weight_N.reshape(5, 40).sum(0)
  np.testing.assert_allclose(total, 5 / 8, atol=0.02)
  np.testing.assert_allclose(r.terms['selector_reach'], 2 * 8 / 5, atol=0.1)


def test_selector_loss_needs_selectors():
  rule = registry.build('balancing', 'selector_loss(reach=0.1)')
  router, params, x_TD, ctx = gate('comet()', None, X)
  r = jax.tree.map(lambda v: v[None], router(params, x_TD, ctx))
  with pytest.raises(ValueError, match='no selector_reach; it goes with dsel'):
    rule.stats(balancing.Sums(r, ctx.mask_T[None], 1))
  router, params, x_TD, ctx = gate('dselect_k()', None, X)
  r = jax.tree.map(lambda v: v[None], router(params, x_TD, ctx))
  stats = rule.stats(balancing.Sums(r, ctx.mask_T[None], 1))
  want = np.mean(r.terms['selector_entropy'] + 0.1 * r.terms['selector_reach'])
  np.testing.assert_allclose(rule.loss(stats, None, {}), [want], rtol=1e-5)


ERRORS = [
  ('routers', 'top_p(p=0)', 'p=0; valid: above 0, at most 1'),
  ('routers', 'top_p(p=1.1)', 'p=1.1; valid: above 0, at most 1'),
  ('routers', 'top_p(max_choices=9)', 'k=9 exceeds num_experts=8'),
  ('routers', 'relu(max_choices=9)', 'k=9 exceeds num_experts=8'),
  ('routers', 'cosine(k=9)', 'k=9 exceeds num_experts=8'),
  ('routers', 'cosine(d_low=0)', 'd_low=0 must be at least 1'),
  ('routers', 'cosine(temperature=0.001)', 'must be at least floor=0.01'),
  ('routers', 'round_robin(k=9)', 'k=9 exceeds num_experts=8'),
  ('routers', 'comet(width=0)', 'width=0 must be above 0'),
  ('routers', 'dselect_k(width=0)', 'width=0 must be above 0'),
  ('balancing', 'selector_loss(reach=-1)', 'reach=-1 is negative'),
  ('balancing', 'relu_loss(growth=1)', 'growth=1 must be above 1'),
  ('balancing', 'relu_loss(k=0)', 'k=0 must be above 0'),
]


@pytest.mark.parametrize(('family', 'spec', 'message'), ERRORS)
def test_errors(family, spec, message):
  with pytest.raises(ValueError, match=message):
    built = registry.build(family, spec)
    built.check(8)
