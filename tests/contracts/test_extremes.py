"""Logits up to 200 either way: weights have sums, gradients are finite."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax import registry, types
from moe_jax.balancing import base as balancing
from moe_jax.seating import seat
from tests import balances, methods, oracles, routing

E, D, T = routing.E, routing.D, routing.T
# Selection biases that change nothing, and that choose the least likely.
BIAS_GE = np.array([[0, 0, 0, 0], [-120, 0, 120, -1.5]], np.float32)
LOGITS = np.concatenate(
  [
    [
      [50, -3, 0, -2],
      [150, 0, -1, -2],
      [0, -1, 50, -3],
      [-50, -51, -53, -52],
      [-200, -170, -160, -20],
      [200, -200, 199, -199],
      [200, 199.9, 199.8, 199.7],
      [0.01, 0.02, 0.03, 0.04],
    ],
    np.random.default_rng(0).uniform(-200, 200, (T - 8, E)),
  ]
).astype(np.float32)
# Tokens that a matrix of ones on its diagonal makes these logits of.
X = np.pad(LOGITS, ((0, 0), (0, D - E)))


def drawn(row):
  """A router with such matrices; others drawn, to saturate some gates."""
  router = registry.build('routers', row.spec)
  shapes = jax.eval_shape(lambda: router.init(jax.random.key(0), E, D))
  rng = np.random.default_rng(1)

  def draw(path, v):
    name = path[-1].key
    if name in ('kernel', 'experts'):
      return np.eye(*v.shape, dtype=np.float32)
    if name == 'sharpness':
      return np.full(v.shape, 100, np.float32)
    small = name in ('splits', 'split_bias', 'bits')
    scale = 0.005 if small else 0.0 if name == 'bias' else 1.0
    return np.asarray(scale * rng.normal(size=v.shape), np.float32)

  return router, jax.tree_util.tree_map_with_path(draw, shapes)


def finite(tree):
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    assert np.isfinite(leaf).all(), jax.tree_util.keystr(path)


EVERY = [
  pytest.param(
    row,
    id=row.spec,
    marks=[] if row.extremes else pytest.mark.slow,
  )
  for row in methods.rows('routers')
]


@pytest.mark.parametrize('row', EVERY)
def test_every_router(row):
  """Weights add up to the oracle's, and after drops still have a gradient."""
  router, params = drawn(row)
  _, ctx = routing.group(row=row)
  ctx = ctx.replace(train=row.train or row.noisy)

  def route(params, x_TD, bias_E):
    r = router(params, x_TD, ctx.replace(selection_bias_E=bias_E))
    seated = seat.seat(r, ((3, E),)) if r.renormalize_kept else None
    return r, seated

  @jax.jit
  def run(params, x_TD):
    def loss(params, x_TD):
      r, seated = jax.vmap(route, (None, None, 0))(params, x_TD, BIAS_GE)
      weight_GN = seated.routing.weight_N if seated else r.weight_N
      draw = np.random.default_rng(2).normal(size=weight_GN.shape)
      return (draw * weight_GN).sum(), (r, seated)

    return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x_TD)

  (value, (r, seated)), gradients = run(params, X)
  finite((value, r.weight_N, gradients))
  if row.by_expert or not row.causal or row.noisy:
    return  # the sum is not a token's own, or drawn
  double = lambda v: np.asarray(v, np.float64)
  seen = routing.seen(ctx, row)
  by_token = lambda v_GN: np.asarray(v_GN).reshape(2, r.choices, T).sum(1)
  for got_T, bias_E in zip(by_token(r.weight_N), BIAS_GE):
    p = jax.tree.map(double, params)
    want = row.expected(double(X), p, double(bias_E), seen)
    np.testing.assert_allclose(got_T, want.weight.sum(1), rtol=1e-4, atol=1e-6)
  if r.renormalize_kept:
    seats_GT = by_token(seated.cause_N == types.KEPT)
    sums_GT = by_token(seated.routing.weight_N)
    np.testing.assert_allclose(sums_GT, seats_GT > 0, rtol=1e-5)
    assert set(seats_GT.flat) == {0, 1, 2}


def loss(spec, r, **fields):
  """A rule's weighted loss of routings with a group axis."""
  rule = registry.build('balancing', spec)
  mask = jnp.ones((r.weight_N.shape[0], T), bool)
  mask = mask[:, : r.probs_TE.shape[1]]
  return balancing.evaluate([rule], r.replace(**fields), mask, 1, (), {})[0]


def test_second_choices_of_a_sure_token():
  """0.01 x 0.5 x E P of the second, P = softmax(0, -1, -2)."""
  logits = jnp.array([[[50.0, 0.0, -1.0, -2.0]]])
  _, r, _ = routing.slopes('top_k(k=2)', logits[0])
  r = jax.tree.map(lambda v: v[None], r)

  @jax.jit
  @jax.grad
  def gradient(z):
    return loss(
      'switch_loss(weight=0.01, second_weight=0.5)',
      r,
      probs_TE=jax.nn.softmax(z),
      log_probs_TE=jax.nn.log_softmax(z),
    )

  want = [0, 0.0045, -0.0033, -0.0012]
  np.testing.assert_allclose(gradient(logits)[0, 0], want, atol=5e-5)


@pytest.mark.parametrize(
  ('spec', 'shift'), [('sigmoid_top_k(k=2)', -50), ('llama4(k=2)', -150)]
)
def test_balance_of_sigmoids_far_below_zero(spec, shift):
  """There sigmoids are exp: 2 (e^2 + e^3) / (e^2 + e^3 + 2) = 1.86."""
  logits = np.tile([2.0, 3.0, 0.0, 0.0], (8, 1)) + shift
  _, r, _ = routing.slopes(spec, logits)
  r = jax.tree.map(lambda v: v[None], r)
  got = jax.jit(lambda r: loss("switch_loss(count='all', weight=1.0)", r))(r)
  used = np.exp(2) + np.exp(3)
  np.testing.assert_allclose(got, 2 * used / (used + 2), rtol=2e-5)


def sigmoid_shares(z):
  s = 1 / (1 + np.exp(-z))
  return s / s.sum(-1, keepdims=True)


LOSSES = balances.rows() + [
  r for r in methods.rows('balancing') if not r.oracle and 'loss()' in r.spec
]
SHARES = ('switch_loss(second', 'sequence_loss()', 'importance_loss')
# Routers: their affinities by hand, where every token has some, and rules;
# saturated sigmoids tie, and the sequence loss ranks them.
KINDS = {
  'vmoe()': (oracles.softmax, ('relu', 'selector')),
  'sigmoid_top_k(k=2)': (
    sigmoid_shares,
    ('relu', 'selector', 'load', 'sequence'),
  ),
  'relu()': (None, ('relu_loss', *SHARES)),
  'dselect_k()': (None, ('selector_loss', *SHARES)),
}


@pytest.mark.parametrize(
  'spec',
  [
    pytest.param(k, marks=pytest.mark.slow) if k == 'dselect_k()' else k
    for k in KINDS
  ],
)
def test_every_rule(spec):
  """Gradients are finite; values are the oracles', in float64."""
  router, params = drawn(methods.Row(spec))
  _, ctx = routing.group()
  mask_GT, states = jnp.ones((2, T), bool), {'relu_loss': jnp.float32(1)}
  affinities, names = KINDS[spec]
  # The names are of those that go with it, or that do not.
  fits = lambda row: row.spec.startswith(names) == (affinities is None)
  build = functools.partial(registry.build, 'balancing')
  rules = {row.spec: build(row.spec) for row in LOSSES if fits(row)}

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def run(x_TD):
    one = lambda b: router(params, x_TD, ctx.replace(selection_bias_E=b))
    r = jax.vmap(one)(BIAS_GE).replace(num_local=2)
    found = {}
    for name, rule in rules.items():
      _, of, _ = balancing.evaluate([rule], r, mask_GT, 2, (), states)
      (found[name],) = of.values()
    return sum(found.values()), (found, r)

  (total, (found, r)), gradient = jax.device_get(run(X))
  finite((total, gradient))
  if affinities is None:
    return
  double = lambda v: np.asarray(v, np.float64)
  probs_TE = affinities(double(LOGITS))
  choices = [
    oracles.Choice(
      *(expert_N.reshape(-1, T).T, None, probs_TE, double(LOGITS)),
      smooth_load=double(r.terms.get('smooth_load', r.probs_TE)[g]),
    )
    for g, expert_N in enumerate(r.expert_N)
  ]
  for row in LOSSES:
    if row.oracle and row.spec in rules:
      want = balances.expected(row, choices, np.ones((2, T), bool), 2)
      np.testing.assert_allclose(
        found[row.spec], want, rtol=2e-4, atol=1e-6, err_msg=row.spec
      )
