"""Routers that draw, follow the step, or are given: what papers say of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax import registry, types
from tests import reference_routers as oracle

E, D, T = 4, 6, 32
X = np.asarray(jax.random.normal(jax.random.key(0), (T, D)))
choices = lambda r: np.asarray(r.expert_N).reshape(r.choices, -1).T
weights = lambda r: np.asarray(r.weight_N).reshape(r.choices, -1).T


def route(spec, x_TD, params=None, experts=E, **known):
  """(params, x) -> Routing with what the context knows; in training."""
  router = registry.build('routers', spec)
  router.check(experts)
  if params is None:
    params = router.init(jax.random.key(1), experts, x_TD.shape[1])
  ctx = types.Context(
    **{
      'key': jax.random.key(2),
      'layer_key': jax.random.key(3),
      'mask_T': jnp.ones(len(x_TD), bool),
      'selection_bias_E': jnp.zeros(experts),
      'train': True,
    }
    | known
  )
  return router(params, jnp.asarray(x_TD), ctx)


def test_random_is_uniform_without_replacement():
  x = np.zeros((4000, 2), np.float32)
  expert = choices(route('random(k=2)', x, experts=5))
  assert (expert[:, 0] != expert[:, 1]).all()
  pair = np.zeros((5, 5))
  np.add.at(pair, tuple(expert.T), 1)
  # 20 ordered pairs; three deviations of a count of 200 are 41.
  off = ~np.eye(5, dtype=bool)
  assert np.abs(pair[off] - 200).max() < 55


def test_random_draws_by_group_and_in_evaluation_by_place_and_layer():
  draw = lambda **known: choices(route('random(k=2)', X, **known))
  same = lambda a, b: np.array_equal(a, b)
  assert not same(draw(), draw(key=jax.random.key(7)))
  quiet = {'train': False, 'key': None}
  assert same(draw(**quiet), draw(train=False))
  assert not same(draw(**quiet), draw(**quiet, layer=jnp.int32(1)))
  fewer = choices(route('random(k=2)', X[:5], **quiet))
  assert same(draw(**quiet)[:5], fewer)
  other = choices(route('random(k=2, seed=1)', X, **quiet))
  assert not same(draw(**quiet), other)


def test_prototypes_of_a_file(tmp_path):
  center = np.random.default_rng(0).normal(size=(2, E, D))
  path = str(tmp_path / 'centroids.npy')
  np.save(path, center)
  for layer, of in ((0, 0), (1, 1), (5, 1)):
    x = center[of] + 0.01
    known = {'layer': jnp.int32(layer)}
    near = route(f'prototype(k=1, path={path!r})', x, **known)
    np.testing.assert_array_equal(choices(near)[:, 0], np.arange(E))
    far = route(f'prototype(k=1, path={path!r}, nearest=False)', x, **known)
    assert (choices(far)[:, 0] != np.arange(E)).all()
  with pytest.raises(ValueError, match=r'wanted is \(MoE layers, 4 experts, w'):
    route(f'prototype(path={path!r})', np.zeros((3, D + 1)))


def test_farthest_prototypes():
  """The published code's sign, in chosen experts and weights."""
  r = route('prototype(k=3, nearest=False, seed=4)', X, layer=jnp.int32(2))
  want = oracle.prototype(X, {}, np.zeros(E), {}, k=3, sign=1, seed=4, layer=2)
  np.testing.assert_array_equal(choices(r), want.expert)
  np.testing.assert_allclose(weights(r), want.weight, rtol=1e-4)
  assert (weights(r)[:, 0] > weights(r)[:, 2]).all()


C = np.array([0.8, -1.5, 0.6, 2.0])  # what each expert gives, of one number
LOGITS = np.array([1.0, 0.9, 0.85, 0.1])  # the last is below the bar
L = lambda y: y + 0.7 * y**2 - 0.4 * y**3
SLOPE = lambda y: 1 + 1.4 * y - 1.2 * y**2


def mixed(n):
  """Experts, weights and gradients by the logits of n tokens of one loss."""

  def losses(z_TE):
    # A token's logits are its own row: the matrix is the identity.
    r = route('sparse_mixer()', z_TE, {'kernel': jnp.eye(E)})
    return L(r.weight_N * jnp.asarray(C)[r.expert_N]).sum(), r

  z_TE = jnp.tile(jnp.asarray(LOGITS, jnp.float32), (n, 1))
  gradient, r = jax.jit(jax.grad(losses, has_aux=True))(z_TE)
  return np.asarray(r.expert_N), np.asarray(r.weight_N), np.asarray(gradient)


def test_sparse_mixer_estimates_the_gradient_of_sampling():
  n = 40000
  expert, weight, gradient = mixed(n)
  p = np.exp(LOGITS[:3]) / np.exp(LOGITS[:3]).sum()
  share = np.bincount(expert, minlength=E) / n
  np.testing.assert_allclose(share, [*p, 0], atol=0.01)
  # A draw at a time: p_i, or p_i / 3, and the derivative of p_i in both cases.
  factor = weight / p[expert]
  third = np.isclose(factor, 1 / 3, rtol=1e-4)
  assert (third | np.isclose(factor, 1, rtol=1e-4)).all()
  assert not third[expert == 0].any()
  for e in (1, 2):
    np.testing.assert_allclose(third[expert == e].mean(), 0.75, atol=0.02)
  jacobian = np.diag(p) - np.outer(p, p)  # of p_i by z_j
  for t in range(50):
    slope = SLOPE(weight[t] * C[expert[t]]) * C[expert[t]]
    np.testing.assert_allclose(
      gradient[t], [*(slope * jacobian[expert[t]]), 0], rtol=1e-3, atol=1e-6
    )
  # The mean: Heun's rule is exact for a cubic, Euler's is the best expert's.
  rise = np.array([L(p[e] * C[e]) - L(0) for e in range(3)])
  rise[0] = p[0] * C[0] * SLOPE(p[0] * C[0])
  np.testing.assert_allclose(
    gradient[:, :3].mean(0), rise @ jacobian, atol=2e-3
  )
  assert np.abs(rise @ jacobian).max() > 0.02


def test_sparse_mixer_starts_where_all_logits_are_zero():
  r = route('sparse_mixer()', X, {'kernel': jnp.zeros((D, E))})
  assert np.isfinite(r.weight_N).all() and len(set(choices(r)[:, 0])) == E


@pytest.mark.parametrize(
  ('layer', 'step', 'used'),
  [(0, 0, 3), (1, 0, 2), (2, 0, 1), (9, 0, 1), (0, 7, 3), (0, 8, 1), (1, 8, 1)],
)
def test_choices_by_layer_and_step(layer, step, used):
  spec = 'scheduled_top_k(k=1, first=(3, 2), until=8)'
  known = {'layer': jnp.int32(layer), 'step': jnp.int32(step)}
  r = route(spec, X, **known)
  renormalize = 'renormalize=False'
  want = route(f'top_k(k={used}, {renormalize})', X)
  assert r.choices == 3
  np.testing.assert_array_equal(choices(r)[:, :used], choices(want))
  np.testing.assert_array_equal(weights(r)[:, :used], weights(want))
  assert (choices(r)[:, used:] == E).all()
  assert (weights(r)[:, used:] == 0).all()
  quiet = route(spec, X, train=False)
  assert ((choices(quiet) < E).sum(1) == 1).all()


def test_candidates_of_rexmoe():
  """The paper's N = 64, r = 4, 10k to 30k; floors by the printed formula."""
  router = registry.build('routers', 'rexmoe(layers=4)')
  found = {
    t: int(router.candidates(jnp.int32(t), 256))
    for t in (0, 10_000, 15_000, 20_000, 25_000, 30_000, 99_999)
  }
  assert list(found.values()) == [64, 64, 112, 160, 208, 256, 256]
  odd = registry.build('routers', 'rexmoe(layers=3, start=2, end=13)')
  for t in range(16):
    want = oracle.rexmoe_candidates(5, 3, 2, 13, t)
    assert int(odd.candidates(jnp.int32(t), 15)) == want, t


def test_rexmoe_lets_candidates_in():
  """One set for all tokens and groups, another in the next layer."""
  x = np.asarray(jax.random.normal(jax.random.key(4), (400, D)))
  used = lambda **known: set(
    choices(
      route('rexmoe(layers=4, start=2, end=8)', x, experts=16, **known)
    ).reshape(-1)
  )
  assert len(used(step=jnp.int32(0))) == 4
  assert len(used(step=jnp.int32(4))) == 8
  assert len(used(step=jnp.int32(8))) == 16
  zero = {'step': jnp.int32(0)}
  assert used(**zero) == used(**zero, key=jax.random.key(9))
  assert used(**zero) != used(**zero, layer_key=jax.random.key(9))
  assert len(used(train=False, key=None, layer_key=None)) == 16


ERRORS = [
  ('random(k=5)', 'random: k=5 exceeds num_experts=4'),
  ('prototype(k=5)', 'prototype: k=5 exceeds num_experts=4'),
  ('sparse_mixer(eps=0)', 'eps=0 must be above 0'),
  ('scheduled_top_k()', 'until=0 must be a step from 1'),
  ('scheduled_top_k(until=9)', 'k=8 exceeds num_experts=4'),
  ('rexmoe(layers=3)', 'layers=3 must divide num_experts=4'),
  ('rexmoe(k=3)', 'k=3 exceeds num_experts=2'),
  ('rexmoe(start=9, end=9)', 'start=9 must be from 0 to below end=9'),
]


@pytest.mark.parametrize(('spec', 'message'), ERRORS)
def test_errors(spec, message):
  with pytest.raises(ValueError, match=message):
    registry.build('routers', spec).check(E)


@pytest.mark.parametrize(
  'spec', ['rexmoe()', 'scheduled_top_k(first=(2,), until=9)']
)
def test_a_schedule_needs_the_step(spec):
  with pytest.raises(ValueError, match='needs step, which is not known'):
    route(spec, X)
