"""Contracts of every router row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax import registry, types
from tests import rows

E, D, T = 4, 8, 12


def group(seed=0, dtype=jnp.float32, masked=0):
  x_TD = jax.random.normal(jax.random.key(seed), (T, D), dtype)
  mask_T = jnp.arange(T) < T - masked
  ctx = types.Context(
    key=jax.random.key(1), mask_T=mask_T, selection_bias_E=jnp.zeros(E)
  )
  return x_TD, ctx


@functools.cache
def build(spec):
  router = registry.build('routers', spec)
  # Larger than at initialisation, so that choices are clear of rounding.
  params = jax.tree.map(lambda v: 8 * v, router.init(jax.random.key(2), E, D))
  return router, params, jax.jit(router)


ids = lambda row: row.spec
each_router = pytest.mark.parametrize('row', rows.ROUTERS, ids=ids)


@each_router
def test_equals_reference(row):
  _, params, route = build(row.spec)
  bias_E = np.linspace(-0.2, 0.2, E)
  x_TD, ctx = group()
  r = route(params, x_TD, ctx.replace(selection_bias_E=jnp.asarray(bias_E)))
  want = row.oracle(np.asarray(x_TD), np.asarray(params['kernel']), bias_E)
  K = r.choices
  np.testing.assert_array_equal(r.expert_N.reshape(K, T).T, want.expert)
  np.testing.assert_allclose(r.weight_N.reshape(K, T).T, want.weight, rtol=1e-5)
  np.testing.assert_allclose(r.logits_TE, want.logits, atol=1e-5)
  np.testing.assert_allclose(r.probs_TE, want.probs, rtol=1e-5)


@each_router
def test_shapes_dtypes_and_range(row):
  _, params, route = build(row.spec)
  x_TD, ctx = group(dtype=jnp.bfloat16, masked=3)
  r = route(params, x_TD, ctx)
  assert r.num_experts == E
  assert r.token_N.shape == r.expert_N.shape == r.weight_N.shape
  assert r.token_N.dtype == r.expert_N.dtype == jnp.int32
  assert r.weight_N.dtype == r.logits_TE.dtype == jnp.float32
  assert ((r.expert_N >= 0) & (r.expert_N <= E)).all()
  assert np.isfinite(r.weight_N).all()
  np.testing.assert_array_equal(
    r.token_N, np.tile(np.arange(T), r.choices or 1)[: r.token_N.size]
  )


@each_router
def test_padding_goes_to_nobody_and_changes_nothing(row):
  _, params, route = build(row.spec)
  x_TD, ctx = group(masked=4)
  r = route(params, x_TD, ctx)
  padded_N = np.asarray(r.token_N) >= T - 4
  assert (r.expert_N[padded_N] == E).all()
  assert (r.weight_N[padded_N] == 0).all()
  other = route(params, x_TD.at[T - 4 :].set(100.0), ctx)
  np.testing.assert_array_equal(r.expert_N, other.expert_N)
  np.testing.assert_array_equal(r.weight_N, other.weight_N)


@each_router
def test_no_expert_twice_for_a_token(row):
  _, params, route = build(row.spec)
  r = route(params, *group())
  pairs = list(zip(np.asarray(r.token_N), np.asarray(r.expert_N)))
  pairs = [(t, e) for t, e in pairs if e < E]
  assert len(set(pairs)) == len(pairs)


@each_router
def test_same_key_same_routing_and_eval_needs_none(row):
  router, params, route = build(row.spec)
  x_TD, ctx = group()
  jax.tree.map(
    np.testing.assert_array_equal,
    route(params, x_TD, ctx),
    route(params, x_TD, ctx),
  )
  router(params, x_TD, ctx.replace(key=None, train=False))


@each_router
def test_gradient_reaches_every_parameter(row):
  _, params, route = build(row.spec)
  x_TD, ctx = group()
  y_N = jax.random.normal(
    jax.random.key(3), route(params, x_TD, ctx).weight_N.shape
  )
  loss = lambda p: (route(p, x_TD, ctx).weight_N * y_N).sum()
  for leaf in jax.tree.leaves(jax.grad(loss)(params)):
    assert np.isfinite(leaf).all() and (np.abs(leaf).max(axis=0) > 1e-6).all()


@each_router
def test_tokens_permute(row):
  _, params, route = build(row.spec)
  x_TD, ctx = group()
  order = np.random.default_rng(0).permutation(T)
  r, p = route(params, x_TD, ctx), route(params, x_TD[order], ctx)
  by_token = lambda v, K: np.asarray(v).reshape(K, T).T
  np.testing.assert_array_equal(
    by_token(r.expert_N, r.choices)[order], by_token(p.expert_N, p.choices)
  )


@each_router
def test_future_changes_the_past_only_where_declared(row):
  router, params, route = build(row.spec)
  x_TD, ctx = group()
  r = route(params, x_TD, ctx)
  changed = x_TD.at[T // 2 :].set(-x_TD[T // 2 :])
  p = route(params, changed, ctx)
  past_N = np.asarray(r.token_N) < T // 2
  same = (r.expert_N == p.expert_N)[past_N].all()
  assert router.causal == row.causal
  assert bool(same) == row.causal


@pytest.mark.parametrize('eps', [0.0, 0.3])
def test_switch_jitter(eps):
  """Appendix C: x * U(1 - eps, 1 + eps), in training only."""
  router = registry.build('routers', f'switch(jitter={eps})')
  params = router.init(jax.random.key(0), E, D)
  x_TD, ctx = group()
  clean = router(params, x_TD, ctx)
  noisy = router(params, x_TD, ctx.replace(train=True))
  difference = np.abs(clean.logits_TE - noisy.logits_TE).max()
  bound = eps * (np.abs(x_TD) @ np.abs(params['kernel'])).max() + 1e-6
  assert (difference > 1e-3) == (eps > 0) and difference <= bound
  if eps:
    with pytest.raises(ValueError, match="'router' random stream"):
      router(params, x_TD, ctx.replace(train=True, key=None))


def test_softmax_of_the_chosen_logits_is_renormalised_top_k():
  """Mixtral's form equals Shazeer's: lecture notes' equivalence."""
  _, params, route = build('top_k()')
  r = route(params, *group())
  logits_TK = np.take_along_axis(
    np.asarray(r.logits_TE), np.asarray(r.expert_N).reshape(2, T).T, -1
  )
  want = np.exp(logits_TK) / np.exp(logits_TK).sum(-1, keepdims=True)
  np.testing.assert_allclose(r.weight_N.reshape(2, T).T, want, rtol=1e-5)


def test_router_is_exact_in_float32():
  """ST-MoE, footnote 7: ten logits of 128 and one of 128.5."""
  logits = np.full(11, 128.0, np.float32)
  logits[-1] = 128.5
  router = registry.build('routers', 'switch()')
  params = {'kernel': jnp.asarray(logits)[None]}
  ctx = types.Context(
    key=None, mask_T=jnp.ones(1, bool), selection_bias_E=jnp.zeros(11)
  )
  r = router(params, jnp.ones((1, 1), jnp.bfloat16), ctx)
  np.testing.assert_allclose(r.probs_TE[0, -1], 0.1415, atol=5e-5)
