"""Contracts of every router row."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax import registry, types
from tests import methods, programs
from tests.routing import D, E, T, build, decided, group, permuted, seen, table

ids = lambda row: row.spec
each_router = pytest.mark.parametrize('row', methods.rows('routers'), ids=ids)


@pytest.mark.parametrize('masked', [0, 3])
@each_router
def test_equals_reference(row, masked):
  _, params, route = build(row)
  bias_E = np.linspace(-0.2, 0.2, E)
  x_TD, ctx = group(masked=masked, row=row)
  r = route(params, x_TD, ctx.replace(selection_bias_E=jnp.asarray(bias_E)))
  mask_T = np.asarray(ctx.mask_T)
  double = lambda v: np.asarray(v, np.float64)
  p = jax.tree.map(double, params)
  want = row.expected(double(x_TD), p, bias_E, seen(ctx, row))
  if row.by_expert:
    assert r.choices is None
    edges = np.argwhere((want.expert < E) & mask_T[:, None]).tolist()
    wanted = {(t, want.expert[t, j]): want.weight[t, j] for t, j in edges}
    got = table(r)
    assert got.keys() == wanted.keys()
    for edge, weight in wanted.items():
      np.testing.assert_allclose(got[edge], weight, rtol=2e-5)
  else:
    by_token = lambda v_N: np.asarray(v_N).reshape(r.choices, T).T[mask_T]
    np.testing.assert_array_equal(by_token(r.expert_N), want.expert[mask_T])
    np.testing.assert_allclose(
      by_token(r.weight_N), want.weight[mask_T], rtol=2e-5
    )
  assert r.weight_on == want.weight_on
  assert (r.probs_TE is None) == (want.probs is None)
  if want.probs is not None:
    real = lambda v_TE: np.asarray(v_TE)[mask_T]
    np.testing.assert_allclose(real(r.logits_TE), real(want.logits), atol=1e-5)
    np.testing.assert_allclose(
      real(r.probs_TE), real(want.probs), rtol=2e-5, atol=1e-7
    )


@each_router
def test_shapes_dtypes_and_range(row):
  _, params, route = build(row)
  x_TD, ctx = group(dtype=jnp.bfloat16, masked=3, row=row)
  r = route(params, x_TD, ctx)
  assert r.num_experts == E
  assert r.token_N.shape == r.expert_N.shape == r.weight_N.shape
  assert r.token_N.dtype == r.expert_N.dtype == jnp.int32
  assert r.weight_N.dtype == jnp.float32
  assert r.logits_TE is None or r.logits_TE.dtype == jnp.float32
  assert ((r.expert_N >= 0) & (r.expert_N <= E)).all()
  assert np.isfinite(r.weight_N).all()
  assert r.token_N.min() >= 0 and r.token_N.max() < T
  if r.choices:
    np.testing.assert_array_equal(r.token_N, np.tile(np.arange(T), r.choices))


@each_router
def test_padding_goes_to_nobody_and_changes_nothing(row):
  _, params, route = build(row)
  x_TD, ctx = group(masked=4, row=row)
  r = route(params, x_TD, ctx)
  padded_N = np.asarray(r.token_N) >= T - 4
  assert (r.expert_N[padded_N] == E).all()
  assert (r.weight_N[padded_N] == 0).all()
  other = route(params, x_TD.at[T - 4 :].set(100.0), ctx)
  np.testing.assert_array_equal(r.expert_N, other.expert_N)
  np.testing.assert_array_equal(r.weight_N, other.weight_N)


@each_router
def test_no_expert_twice_for_a_token(row):
  _, params, route = build(row)
  r = route(params, *group(row=row))
  pairs = list(zip(np.asarray(r.token_N), np.asarray(r.expert_N)))
  pairs = [(t, e) for t, e in pairs if e < E]
  assert (len(set(pairs)) == len(pairs)) == row.distinct


@each_router
def test_same_key_same_routing_and_eval_needs_none(row):
  router, params, route = build(row)
  x_TD, ctx = group(row=row)
  jax.tree.map(
    np.testing.assert_array_equal,
    route(params, x_TD, ctx),
    route(params, x_TD, ctx),
  )
  quiet = ctx.replace(key=None, train=False)
  jax.eval_shape(lambda: router(params, x_TD, quiet))


@each_router
def test_gradient_reaches_every_parameter(row):
  """In training, where noise has parameters of its own."""
  router, params, _ = build(row)
  x_TD, ctx = group(row=row)

  @jax.jit
  @jax.grad
  def gradient(p):
    r = router(p, x_TD, ctx.replace(train=True))
    y_N = jax.random.normal(jax.random.key(3), r.weight_N.shape)
    return (r.weight_N * y_N).sum()

  learns = E if row.local_learns else E - row.local
  for leaf in jax.tree.leaves(gradient(params)):
    leaf = leaf[..., :learns]
    assert np.isfinite(leaf).all()
    assert (np.abs(leaf).max(axis=0) > 1e-6).all()


@each_router
def test_tokens_permute(row):
  _, params, route = build(row)
  x_TD, ctx = group(row=row)
  order = np.random.default_rng(0).permutation(T)
  r = route(params, x_TD, ctx)
  p = route(params, x_TD[order], permuted(ctx, order))
  if r.choices:  # and the ranks of a token's choices
    by_token = lambda v, K: np.asarray(v).reshape(K, T).T
    same = by_token(r.expert_N, r.choices)[order] == by_token(
      p.expert_N, p.choices
    )
    assert same.all() == row.permutes
  if row.permutes and row.distinct:
    back = {(int(order[t]), e): w for (t, e), w in table(p).items()}
    assert table(r).keys() == back.keys()
    for edge, weight in table(r).items():
      np.testing.assert_allclose(back[edge], weight, rtol=1e-4)


@each_router
def test_future_changes_the_past_only_where_declared(row):
  router, params, route = build(row)
  x_TD, ctx = group(row=row)
  r = route(params, x_TD, ctx)
  now = T // 2 + 1
  changed = x_TD.at[now:].set(-x_TD[now:])
  p = route(params, changed, ctx)
  past = lambda r: {e for e in table(r) if e[0] < now}
  assert router.causal == row.causal
  assert (past(r) == past(p)) == row.causal


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize(
  'row', [r for r in methods.rows('routers', True) if not r.causal], ids=ids
)
def test_routers_that_compare_a_group_say_so(row, train):
  """Half a group alone goes where it went, or the group is the method.

  Causal routers do not see the other half: see above.
  """
  router = registry.build('routers', row.spec)
  params = decided(router.init(jax.random.key(2), E, D), 8)
  x_TD, ctx = group(row=row)
  whole = np.arange(T) < T // 2
  half = jax.tree.map(lambda v: v[: T // 2] if v.shape[:1] == (T,) else v, ctx)

  @jax.jit
  def route():
    of = lambda x, c: router(params, x, c.replace(train=train))
    return of(x_TD, ctx), of(x_TD[: T // 2], half)

  a, b = route()
  if isinstance(a, types.SlotRouting):
    alike = np.allclose(a.dispatch_TN[whole], b.dispatch_TN, atol=1e-6)
  else:
    first = {e: w for e, w in table(a).items() if whole[e[0]]}
    alike = first.keys() == table(b).keys()
  compares = router.compares in ('always', 'train' if train else '')
  assert alike != compares


@pytest.mark.parametrize('row', methods.rows('routers', True), ids=ids)
def test_routers_multiply_in_float32(row):
  """bf16 tokens; a CPU would not show what a TPU rounds to bf16."""
  router = registry.build('routers', row.spec)
  params = jax.eval_shape(lambda: router.init(jax.random.key(0), E, D))
  x_TD, ctx = group(row=row)
  ctx = ctx.replace(train=True)
  of = jax.make_jaxpr(lambda p, x: router(p, x, ctx))
  found = list(programs.products(of(params, x_TD.astype(jnp.bfloat16)).jaxpr))
  for eqn in found:
    assert {v.aval.dtype for v in eqn.invars} == {np.dtype('float32')}, eqn
    assert eqn.params['precision'] == programs.HIGHEST, eqn
  assert found or not (router.reads_experts or jax.tree.leaves(params))


@pytest.mark.parametrize(('spec', 'message'), methods.errors('routers'))
def test_errors(spec, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    registry.build('routers', spec).check(8)
