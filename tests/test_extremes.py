"""Logits up to 200 either way: weights have sums, gradients are finite."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax import registry, types
from moe_jax.balancing import base as balancing
from moe_jax.kernels import gates
from moe_jax.seating import seat
from tests import methods, oracles, routing as contract

E, D, T = contract.E, contract.D, contract.T
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


# One row of each arithmetic of weights; raw probabilities are switch's.
DEFAULT = (
  'switch()',
  'top_k()',
  "top_k(k=2, renormalize='kept')",
  'noisy_top_k(k=2)',
  'adamoe(k=3)',
  'replay()',
  'segment(size=3, k=2)',
  'cosine(k=2)',
  'sigmoid_top_k(k=2)',
  'llama4()',
  'relu()',
  'comet()',
  'dselect_k()',
  'autonomy()',
  'moe_x()',
  'prototype()',
  'product_keys(heads=3, k=2, d_key=6)',
  'sparse_mixer(eps=0.5)',
  'base_layer(tolerance=1e-5, iterations=5000)',
  'expert_choice(choices=1.5)',
)
EVERY = [
  pytest.param(
    row,
    id=row.spec,
    marks=[] if row.spec in DEFAULT else pytest.mark.slow,
  )
  for row in methods.rows('routers')
]


@pytest.mark.parametrize('row', EVERY)
def test_every_router(row):
  """Weights add up to the oracle's, and after drops still have a gradient."""
  router, params = drawn(row)
  _, ctx = contract.group(row=row)
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
  seen = contract.seen(ctx, row)
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


def group(logits_TE, spec, bias_E=None, local=0, rows_=None):
  """Weights, routing and (seated) weights' gradient of one group by hand."""
  logits_TE = jnp.asarray(logits_TE, jnp.float32)
  router, n = registry.build('routers', spec), logits_TE.shape[1]
  ctx = types.Context(
    key=None,
    mask_T=jnp.ones(len(logits_TE), bool),
    selection_bias_E=jnp.zeros(n) if bias_E is None else jnp.asarray(bias_E),
    num_local=local,
  )

  def weights(logits_TE):
    r = router({'kernel': jnp.eye(n)}, logits_TE, ctx)
    if rows_:
      r = seat.seat(r, ((rows_, n),)).routing
    return r.weight_N.reshape(r.choices, -1).T, r

  @jax.jit
  def run(logits_TE):
    jacobian = jax.jacrev(weights, has_aux=True)(logits_TE)
    return *weights(logits_TE), jacobian[0]

  return jax.device_get(run(logits_TE))


@pytest.mark.parametrize('sure', [50, 150])
def test_a_token_left_with_an_unlikely_expert(sure):
  """Its weight is 1 whatever the logits: no gradient. (It was NaN.)"""
  logits = [[50, -3, 0, -2], [sure, 0, -1, -2], [sure, 0, -1, -2]]
  spec = "top_k(k=2, renormalize='kept')"
  weight, _, gradient = group(logits, spec, rows_=1)
  # The third finds both its experts full.
  np.testing.assert_allclose(weight, [[1, 0], [0, 1], [0, 0]], atol=1e-12)
  np.testing.assert_allclose(gradient, 0, atol=1e-12)


def test_an_unlikely_true_expert_beside_a_null_one():
  weight, _, gradient = group([[0, -1, 50]], 'adamoe(k=2)', local=1)
  np.testing.assert_array_equal(weight, [[0, 1]])
  np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize('bias', [-1.5, -120.0])
def test_unlikely_experts_by_the_selection_bias(bias):
  """Of logits 0 and -1: 1 / (1 + 1 / e), and p (1 - p) for its slope."""
  weight, _, gradient = group(
    [[50, 0, -1, -2]], 'top_k(k=2)', [bias, 0.0, 0.0, 0.0]
  )
  p = 1 / (1 + np.exp(-1))
  np.testing.assert_allclose(weight, [[p, 1 - p]], rtol=1e-6)
  slope = p * (1 - p) * np.array([0, 1, -1, 0])
  np.testing.assert_allclose(gradient[0, 0, 0], slope, atol=2e-7)
  np.testing.assert_allclose(gradient[0, 1, 0], -slope, atol=2e-7)


def loss(spec, r, **fields):
  """A rule's weighted loss of routings with a group axis."""
  rule = registry.build('balancing', spec)
  mask = jnp.ones((r.weight_N.shape[0], T), bool)
  mask = mask[:, : r.probs_TE.shape[1]]
  return balancing.evaluate([rule], r.replace(**fields), mask, 1, (), {})[0]


def test_second_choices_of_a_sure_token():
  """0.01 x 0.5 x E P of the second, P = softmax(0, -1, -2)."""
  logits = jnp.array([[[50.0, 0.0, -1.0, -2.0]]])
  _, r, _ = group(logits[0], 'top_k(k=2)')
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
  _, r, _ = group(logits, spec)
  r = jax.tree.map(lambda v: v[None], r)
  got = jax.jit(lambda r: loss("switch_loss(count='all', weight=1.0)", r))(r)
  used = np.exp(2) + np.exp(3)
  np.testing.assert_allclose(got, 2 * used / (used + 2), rtol=2e-5)


def test_shares_of_tiny_gates():
  """1e-25 and 3e-25: a quarter, 3 / 16 / 1e-25 for its slope; 0 / 0 is 0."""
  first = jax.jit(jax.value_and_grad(lambda v: gates.shares(v)[0]))
  value, slope = first(np.array([1e-25, 3e-25, 0], np.float32))
  np.testing.assert_allclose(value, 0.25, rtol=1e-6)
  np.testing.assert_allclose(slope, [1.875e24, -0.625e24, -0.625e24], rtol=1e-5)
  value, slope = first(np.zeros(3, np.float32))
  assert value == 0 and (slope == 0).all()
  # The same of a squared coefficient of variation: (1 / 2)^2, of any unit.
  cv = jax.jit(jax.value_and_grad(lambda v: balancing.squared_cv(v)[0]))
  for unit in (1.0, 1e-20):
    value, slope = cv(np.array([[unit, 3 * unit]], np.float32))
    np.testing.assert_allclose(value, 0.25, rtol=1e-6)
    np.testing.assert_allclose(slope * unit, [[-0.375, 0.125]], rtol=1e-5)


def test_comet_finds_a_leaf_that_is_hardly_reached():
  """Two steps of 3 x 2^-48 each, and a score of e^200 at the end."""
  router = registry.build('routers', 'comet(k=1)')
  hardly = -(0.5 - 2.0**-24)
  params = {
    'splits': jnp.zeros((1, 3)),
    'split_bias': jnp.array([hardly, hardly, 0.0]),
    'leaves': jnp.array([[200.0, 0.0, 0.0, 0.0]]),
  }
  ctx = types.Context(None, jnp.ones(1, bool), jnp.zeros(4))
  weight = jax.jit(lambda p: router(p, jnp.ones((1, 1)), ctx).weight_N)
  np.testing.assert_allclose(weight(params), [1, 0, 0, 0], atol=1e-6)
  finite(jax.jit(jax.jacrev(weight))(params))


def test_root_of_softplus_is_smooth_all_the_way():
  """Half of log softplus; x itself below; slopes between 1 and 0."""
  x = np.array([-200.0, -40.0, -16.1, -15.9, -5.0, 0.0, 5.0, 200.0])
  both = jax.jit(jax.vmap(jax.value_and_grad(gates.log_softplus)))
  value, slope = both(np.float32(x))
  soft = np.log1p(np.exp(x))
  np.testing.assert_allclose(value, np.log(soft), rtol=1e-6)
  np.testing.assert_allclose(slope, 1 / (1 + np.exp(-x)) / soft, rtol=1e-5)


def fitted(row):
  """The rule and its oracle for E experts."""
  if 'devices=5' not in row.spec:
    return registry.build('balancing', row.spec), row.oracle
  rule = registry.build('balancing', row.spec.replace('=5', '=2'))
  return rule, lambda *seen: row.oracle(*seen, devices=2)


def sigmoid_shares(z):
  s = 1 / (1 + np.exp(-z))
  return s / s.sum(-1, keepdims=True)


LOSSES = [
  r for r in methods.rows('balancing') if r.oracle or 'loss()' in r.spec
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
  _, ctx = contract.group()
  mask_GT, states = jnp.ones((2, T), bool), {'relu_loss': jnp.float32(1)}
  affinities, names = KINDS[spec]
  # The names are of those that go with it, or that do not.
  fits = lambda row: row.spec.startswith(names) == (affinities is None)
  rules = {row.spec: fitted(row)[0] for row in LOSSES if fits(row)}

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
      _, oracle = fitted(row)
      apart = [oracle([c], np.ones((1, T), bool)) for c in choices]
      together = oracle(choices, np.ones((2, T), bool))
      each = rules[row.spec].scope != 'global'
      want = np.mean(apart) if each else together
      np.testing.assert_allclose(
        found[row.spec], want, rtol=2e-4, atol=1e-6, err_msg=row.spec
      )
