"""The layer at its edges: padding, repeated experts, sizes, precision."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax import registry, types
from moe_jax.layers import causality, linen, moe
from moe_jax.seating import capacity
from tests import methods, programs

D, F = 2, 3
DISPATCH = [r.spec for r in methods.rows('dispatch')]


def layer(router, E=2, dispatch='scatter()', T=4, **fields):
  fields = {'capacity_factor': None, 'eval_capacity_factor': None} | fields
  balance = fields.pop('balance', ())
  return linen.MoE(
    moe.MoE(
      num_experts=E,
      router=registry.build('routers', router),
      experts=registry.build('experts', f'mlp(d_ff={F})'),
      dispatch=registry.build('dispatch', dispatch),
      balance=tuple(registry.build('balancing', b) for b in balance),
      group_size=T,
      **fields,
    )
  )


def experts(E, seed=0):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  return {'wi': draw(E, D, F), 'wo': draw(E, F, D)}


def by_hand(w, e, x_D):
  """A ReLU expert on one token."""
  x_D = np.asarray(x_D, np.float64)
  return np.maximum(x_D @ w['wi'][e], 0) @ w['wo'][e]


def drawn(m, x, seed=3):
  """Parameters as numbers of NumPy."""
  shapes = jax.eval_shape(
    lambda: nn.unbox(m.init(jax.random.key(0), x, types.Tokens(), train=False))[
      'params'
    ]
  )
  rng = np.random.default_rng(seed)
  draw = lambda v: rng.normal(size=v.shape).astype(np.float32)
  return jax.tree.map(draw, shapes)


@pytest.mark.parametrize('router', ['moe_x()', 'autonomy()'])
def test_local_experts_have_no_weights_to_read(router):
  local = (registry.build('local_experts', 'zero()'),)
  with pytest.raises(
    ValueError, match=r'local_experts=.*: they have no weights'
  ):
    layer(router, local_experts=local)


def test_heads_that_agree_have_a_seat_each():
  """One token to decode, two heads of one expert that gives [2, 2]: [4, 4]."""
  x = jnp.ones((1, 1, D))
  w = {'wi': jnp.ones((1, D, F)) / F, 'wo': jnp.ones((1, F, D))}
  spec = 'product_keys(heads=2, k=1, d_key=2)'
  some = ('scatter()', 'gather_reduce()', 'lookup()')
  layers = [layer(spec, 1, dispatch) for dispatch in some]
  params = drawn(layers[0], x) | {'experts': w}

  @jax.jit
  def run(params):
    apply = lambda m: m.apply({'params': params}, x, train=False)[::2]
    return [apply(m) for m in layers]

  for spec, (y, aux) in zip(some, run(params)):
    np.testing.assert_allclose(y, 4 * np.ones((1, 1, D)), err_msg=spec)
    assert list(aux.cause) == [2, 0, 0, 0, 0, 0]


def test_a_repeated_expert_in_batches_of_any_size():
  """Replay's weights add up to 1: the expert itself, whatever the batch."""
  B, L, E, w = 4, 2, 3, experts(3)
  forced = np.array([[[0, 0], [1, 1]], [[1, 1], [1, 2]], *[[[2, 2]] * 2] * 2])
  x = np.random.default_rng(1).normal(size=(B, L, D)).astype(np.float32)
  router = np.random.default_rng(2).normal(size=(D, E)).astype(np.float32)
  logits = x.astype(np.float64) @ router
  want = np.zeros((B, L, D))
  for b, t in np.ndindex(B, L):
    p = np.exp(logits[b, t, forced[b, t]])
    for weight, e in zip(p / p.sum(), forced[b, t]):
      want[b, t] += weight * by_hand(w, e, x[b, t])
  params = {'router': {'kernel': router}, 'experts': w}
  m = layer('replay(k=2)', E, T=8)

  @jax.jit
  def run(x, forced):
    tokens = types.Tokens(forced=forced[:, :, None])
    y, _, aux = m.apply({'params': params}, x, tokens, train=False)
    return y, aux.cause

  for size in (4, 1):  # groups of 8 and of 2 tokens
    for b in range(0, B, size):
      y, cause = run(x[b : b + size], jnp.asarray(forced[b : b + size]))
      np.testing.assert_allclose(y, want[b : b + size], atol=1e-6)
      assert cause[types.KEPT] == size * L * 2
  assert causality.leak(m.core, D) == ''
  seats = lambda rows_, m=m: dataclasses.replace(
    m.core, capacity_factor=1.0, capacity_rule=capacity.fixed(rows_)
  ).rows(4, 1.0)
  assert [seats(n) for n in (3, 8, 9)] == [3, 8, 8]


# The rows are zeroed before any dispatch; einsum's products spread a NaN most.
PADDED = [
  pytest.param(
    *(d, 'top_k()', 'none'),
    marks=[] if d == 'einsum()' else pytest.mark.slow,
  )
  for d in DISPATCH
]
PADDED += [
  ('slots()', 'soft(slots=2)', 'none'),
  ('scatter()', 'relu()', 'gated'),
]


@pytest.mark.parametrize(('dispatch', 'router', 'branch'), PADDED)
def test_padding_may_hold_anything(dispatch, router, branch):
  """NaN, infinity or zeros: the same outputs, losses and gradients."""
  dense = registry.build('experts', f'mlp(d_ff={F}, bias=True)')
  local = ()
  if branch == 'gated':
    local = (registry.build('local_experts', 'copy()'),)
  m = layer(
    router, 2, dispatch, dense_branch=branch, dense=dense, local_experts=local
  )
  x = np.random.default_rng(0).normal(size=(2, 4, D)).astype(np.float32)
  mask = np.array([[True, True, False, False], [True, False, True, True]])
  params = drawn(m, jnp.asarray(x))

  @jax.jit
  def run(params, x):
    def loss(params, x):
      tokens = types.Tokens(jnp.asarray(mask))
      y = m.apply({'params': params}, x, tokens, train=True)[0]
      return (y * jnp.cos(jnp.arange(16.0).reshape(y.shape))).sum(), y

    return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)

  found = []
  for value in (0.0, np.nan, np.inf):
    found.append(run(params, np.where(mask[..., None], x, value)))
  for other in found[1:]:
    jax.tree.map(np.testing.assert_array_equal, found[0], other)
  assert all(np.isfinite(v).all() for v in jax.tree.leaves(found[0]))
  assert np.abs(found[0][1][0]['router']['kernel']).max() > 1e-3


@pytest.mark.parametrize(
  ('router', 'train', 'size'),
  [
    ('top_k()', True, 6),
    ('segment(size=3)', True, 6),
    ('expert_choice()', True, None),
    ('expert_choice()', False, None),
    ('capped_expert_choice()', False, None),
    ('soft()', False, None),
    ('base_layer()', True, None),
    ('base_layer()', False, 6),
    ('sinkhorn()', True, None),
    ('sinkhorn()', False, 6),
  ],
)
def test_dropless_groups(router, train, size):
  """Groups of 8 wanted, 12 tokens: groups of 6, or an error that says why."""
  m = layer(router, 2, T=8)
  assert m.core.tokens_of_group(16, train) == 8
  if size:
    assert m.core.tokens_of_group(12, train) == size
  else:
    message = 'group_size=8 does not .* the router .* nearest first: 6, 4, 12,'
    with pytest.raises(ValueError, match=message):
      m.core.tokens_of_group(12, train)
    with pytest.raises(ValueError, match=message):
      jax.eval_shape(
        lambda: m.init(jax.random.key(0), jnp.ones((1, 12, D)), train=train)
      )
  with pytest.raises(ValueError, match='does not divide the 12 tokens of a d'):
    factors = {'capacity_factor': 1.0, 'eval_capacity_factor': 1.0}
    dataclasses.replace(m.core, **factors).tokens_of_group(12, train)


def test_odd_loads_above_256_in_bfloat16():
  """301 tokens want one expert of 257 seats: bf16 has neither number."""
  T, x = 301, jnp.ones((1, 301, D), jnp.bfloat16)
  params = {
    'router': {'kernel': jnp.array([[3.0, 0.0], [0.0, 0.0]])},
    'experts': experts(2),
  }
  layers = [
    layer(
      *('switch()', 2, dispatch, T),
      balance=('loss_free_bias()', 'switch_loss(weight=1.0)'),
      eval_capacity_factor=1.0,
      capacity_rule=capacity.fixed(257),
      dtype=jnp.bfloat16,
    )
    for dispatch in ('scatter()', 'gather_reduce()')
  ]

  @jax.jit
  def run(params):
    v = {
      'params': params,
      'balance': {'state': {'loss_free_bias': jnp.zeros(2)}},
    }
    return [m.apply(v, x, train=False)[::2] for m in layers]

  for y, aux in run(params):
    assert list(aux.load_E) == [301, 0] and aux.load_E.dtype == jnp.int32
    assert list(aux.cause) == [257, 44, 0, 0, 0, 0]
    assert list(aux.stats['loss_free_bias']['load']) == [301, 0]
    assert list(aux.health['used'][:2]) == [44, 257]
    served = np.abs(np.asarray(y[0], np.float32)).max(-1) > 0
    assert served[:257].all() and not served[257:].any()
    p = 1 / (1 + np.exp(-3))
    np.testing.assert_allclose(aux.loss, 2 * p, rtol=1e-5)


def test_fewer_real_tokens_than_seats():
  """Every expert has four seats, and takes the one token there is."""
  E, T, w = 4, 8, experts(4)
  x = np.random.default_rng(1).normal(size=(1, T, D)).astype(np.float32)
  kernel = np.random.default_rng(2).normal(size=(D, E)).astype(np.float32)
  mask = np.arange(T)[None] == 5
  layers = [
    layer('expert_choice(choices=2)', E, d, T, eval_capacity_factor=1.0)
    for d in DISPATCH
  ]
  params = {'router': {'kernel': kernel}, 'experts': w}
  run = jax.jit(
    lambda: [
      m.apply(
        {'params': params}, x, types.Tokens(jnp.asarray(mask)), train=False
      )[::2]
      for m in layers
    ]
  )
  logits = x[0, 5].astype(np.float64) @ kernel
  p = np.exp(logits) / np.exp(logits).sum()
  want = np.zeros((T, D))
  want[5] = sum(p[e] * by_hand(w, e, x[0, 5]) for e in range(E))
  for spec, (y, aux) in zip(DISPATCH, run()):
    np.testing.assert_allclose(y[0], want, atol=1e-6, err_msg=spec)
    assert list(aux.cause) == [4, 0, 0, 12, 0, 0]
    assert list(aux.load_E) == [1, 1, 1, 1]


def test_one_expert_and_one_choice():
  """The weight is 1 and the layer its expert, with one seat the first's."""
  x, w = np.array([[[1.0, -2.0], [0.5, 3.0]]], np.float32), experts(1)
  params = {'router': {'kernel': jnp.ones((D, 1))}, 'experts': w}
  seats = [1 + i % 2 for i in range(len(DISPATCH))]
  layers = [
    layer(
      *('switch()', 1, d, 2),
      balance=('switch_loss()',),
      eval_capacity_factor=0.5 * n,
    )
    for d, n in zip(DISPATCH, seats)
  ]
  run = jax.jit(
    lambda: [m.apply({'params': params}, x, train=False)[::2] for m in layers]
  )
  want = np.array([by_hand(w, 0, x_D) for x_D in x[0]])
  for n, (y, aux) in zip(seats, run()):
    np.testing.assert_allclose(y[0, :n], want[:n], rtol=1e-5)
    np.testing.assert_array_equal(y[0, n:], 0)
    assert list(aux.cause[:2]) == [n, 2 - n]
    np.testing.assert_allclose(aux.losses['switch_loss'], 1)


def test_fractional_and_local_capacities():
  """By hand: 1.1 x 5 x 1.5 / 3 = 2.75; 1.1 x 5 x 2 / 4.25 = 2.59, and 3/4."""
  m = layer('relu()', 3, T=5)
  assert m.core.capacities(5, 1.1) == ((3, 3),)
  local = (registry.build('local_experts', 'zero(count=2)'),)
  rule = capacity.build('moe_plus_plus(tau=0.75)')
  m = layer('moe_plus_plus()', 3, local_experts=local, capacity_rule=rule)
  assert m.core.capacities(5, 1.1) == ((2, 3), (3, 2))
  assert m.core.capacities(5, None) == ((5, 3), (5, 2))


@pytest.mark.parametrize('dispatch', [d for d in DISPATCH if d != 'einsum()'])
def test_float32_products_of_a_bf16_layer_are_exact(dispatch):
  """Combine weights, gates and zero-computation experts are never rounded."""
  dense = registry.build('experts', f'mlp(d_ff={F})')
  fields = {'dense_branch': 'gated', 'dense': dense}
  local = (registry.build('local_experts', 'constant()'),)
  m = layer(
    'top_k()', 2, dispatch, dtype=jnp.bfloat16, local_experts=local, **fields
  )
  x = jnp.ones((1, 4, D), jnp.bfloat16)
  params = jax.eval_shape(
    lambda: nn.unbox(m.init(jax.random.key(0), x, train=False)['params'])
  )
  apply = lambda p: m.apply({'params': p}, x, train=False)[0]
  found = list(programs.products(jax.make_jaxpr(apply)(params).jaxpr))
  wide = [
    e for e in found if np.dtype('float32') in [v.aval.dtype for v in e.invars]
  ]
  assert wide and len(wide) < len(found)
  for eqn in wide:
    assert eqn.params['precision'] == programs.HIGHEST, eqn
