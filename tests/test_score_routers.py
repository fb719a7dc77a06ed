"""Routers that choose by a token's own scores: what papers say of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax import registry, types
from moe_jax.balancing import base as balancing
from tests import reference_scores as oracle

E, D, T = 8, 6, 64


def route(spec, params, x_TD, train=False, bias_E=None, key=0, mask_T=None):
  router = registry.build('routers', spec)
  ctx = types.Context(
    key=jax.random.key(key),
    mask_T=jnp.ones(len(x_TD), bool) if mask_T is None else mask_T,
    selection_bias_E=jnp.zeros(E) if bias_E is None else jnp.asarray(bias_E),
    train=train,
  )
  return jax.jit(router)(params, jnp.asarray(x_TD), ctx)


def matrix(seed=1, scale=1.0):
  return scale * jax.random.normal(jax.random.key(seed), (D, E))


X = np.asarray(jax.random.normal(jax.random.key(0), (T, D)))
NOISY = {'kernel': matrix(1), 'noise': matrix(2)}
choices = lambda r: np.asarray(r.expert_N).reshape(r.choices, -1).T
weights = lambda r: np.asarray(r.weight_N).reshape(r.choices, -1).T


@pytest.mark.parametrize('train', [True, False])
def test_smooth_load_has_a_bar_among_the_others(train):
  r = route('noisy_top_k(k=3)', NOISY, X, train)
  noisy, clean = np.asarray(r.logits_TE), np.asarray(r.terms['clean_logits'])
  std = np.logaddexp(0, X @ np.asarray(NOISY['noise'])) + 0.01
  np.testing.assert_allclose(clean, X @ np.asarray(NOISY['kernel']), rtol=2e-4)
  assert (np.abs(noisy - clean).max() > 0.1) == train
  for t in range(T):
    want = oracle.smooth_load(clean[t], noisy[t], std[t], 3)
    np.testing.assert_allclose(
      r.terms['smooth_load'][t], want, rtol=1e-3, atol=1e-6
    )


def test_smooth_load_is_the_expected_count():
  """Over draws of all noise: by expert, and K T in all (appendix A)."""
  draws = 300
  router = registry.build('routers', 'noisy_top_k(k=2)')

  def one(key):
    ctx = types.Context(
      key=key,
      mask_T=jnp.ones(T, bool),
      selection_bias_E=jnp.zeros(E),
      train=True,
    )
    r = router(NOISY, jnp.asarray(X), ctx)
    counts = jnp.zeros(E).at[r.expert_N].add(1)
    return counts, r.terms['smooth_load'].sum(0), r.logits_TE

  keys = jax.random.split(jax.random.key(3), draws)
  counts, load, h = jax.jit(jax.vmap(one))(keys)
  # 0.3 is one standard error here.
  np.testing.assert_allclose(load.mean(0).sum(), 2 * T, atol=0.9)
  np.testing.assert_allclose(load.mean(0), counts.mean(0), rtol=0.05, atol=0.2)
  std = np.logaddexp(0, X @ np.asarray(NOISY['noise'])) + 0.01
  np.testing.assert_allclose(h.std(0), std, rtol=0.25)


def test_noisy_top_k_losses_and_their_gradients():
  """Importance sums the sparse gates; the load reaches both matrices."""
  router = registry.build('routers', 'noisy_top_k(k=2)')
  load = registry.build('balancing', 'load_loss()')
  importance = registry.build('balancing', 'importance_loss()')
  ctx = types.Context(
    key=jax.random.key(0),
    mask_T=jnp.ones(T, bool),
    selection_bias_E=jnp.zeros(E),
    train=True,
  )

  @jax.jit
  def losses(params):
    r = jax.tree.map(lambda v: v[None], router(params, jnp.asarray(X), ctx))
    evaluate = lambda rule: balancing.evaluate(
      [rule], r, ctx.mask_T[None], 1, (), {}
    )[1]
    return evaluate(load)['load_loss'], evaluate(importance), r

  gradient = jax.grad(lambda p: losses(p)[0])(NOISY)
  assert all(np.abs(g).max() > 1e-4 for g in gradient.values())
  _, got, r = losses(NOISY)
  total = np.zeros(E)
  np.add.at(total, np.asarray(r.expert_N[0]), np.asarray(r.weight_N[0]))
  want = (total.std() / total.mean()) ** 2
  np.testing.assert_allclose(got['importance_loss'], want, rtol=1e-4)


def test_noisy_top_k_starts_balanced():
  router = registry.build('routers', 'noisy_top_k(k=2)')
  params = router.init(jax.random.key(0), E, D)
  assert all((v == 0).all() for v in params.values())
  x = np.random.default_rng(0).normal(size=(4000, D)).astype(np.float32)
  r = route('noisy_top_k(k=2)', params, x, train=True)
  share = np.bincount(np.asarray(r.expert_N), minlength=E) / 8000
  np.testing.assert_allclose(share, 1 / E, rtol=0.1)


def test_gpt_oss_is_renormalised_top_k_of_the_softmax():
  params = {'kernel': matrix(), 'bias': jnp.zeros(E)}
  a = route('gpt_oss(k=2)', params, X)
  b = route('top_k(k=2)', {'kernel': params['kernel']}, X)
  np.testing.assert_array_equal(a.expert_N, b.expert_N)
  np.testing.assert_allclose(a.weight_N, b.weight_N, rtol=1e-5)
  # Its bias is part of the weight; the selection bias is not.
  params['bias'] = jnp.arange(E) / 4.0
  c = route('gpt_oss(k=2)', params, X)
  d = route('gpt_oss(k=2)', params, X, bias_E=np.full(E, 3.0))
  assert np.abs(c.weight_N - a.weight_N).max() > 0.1
  np.testing.assert_array_equal(c.weight_N, d.weight_N)


def test_sigmoid_weights_sum_to_the_scaling():
  r = route('sigmoid_top_k(k=3, scaling=1.5)', {'kernel': matrix()}, X)
  np.testing.assert_allclose(weights(r).sum(1), 1.5, rtol=1e-5)
  np.testing.assert_allclose(r.probs_TE.sum(1), 1.0, rtol=1e-5)


def test_root_of_softplus_weights():
  spec = "sigmoid_top_k(k=3, score='sqrt_softplus', scaling=1.0)"
  params, bias_E = {'kernel': matrix()}, np.linspace(-0.2, 0.2, E)
  r = route(spec, params, X, bias_E=bias_E)
  z = X @ np.asarray(params['kernel'])
  score = np.sqrt(np.log1p(np.exp(z)))
  for t in range(T):
    chosen = oracle.best(score[t] + bias_E, 3)
    want = score[t, chosen] / score[t, chosen].sum()
    np.testing.assert_array_equal(choices(r)[t], chosen)
    np.testing.assert_allclose(weights(r)[t], want, rtol=1e-4)
  # No NaN where the softplus is 0.
  loss = lambda p: route(spec, p, X).weight_N[:T].sum()
  far = {'kernel': 1e4 * matrix()}
  assert np.isfinite(jax.grad(loss)(far)['kernel']).all()


V3 = 'sigmoid_top_k(k=3, groups=4, kept_groups=2)'


def test_a_token_stays_in_its_groups():
  """Node-limited: at most two of the four groups, and not always the same."""
  groups = choices(route(V3, {'kernel': matrix()}, X)) // 2
  used = [frozenset(g) for g in groups.tolist()]
  assert max(map(len, used)) == 2 and len(set(used)) > 3
  free = choices(route(V3.replace('=2', '=4'), {'kernel': matrix()}, X))
  assert max(len(set(g)) for g in (free // 2).tolist()) == 3


@pytest.mark.parametrize('shift', [0.5, -5.0])
def test_equal_biases_change_nothing(shift):
  """Trap: with other groups masked by 0, negative scores choose from them."""
  params = {'kernel': matrix()}
  plain, moved = (
    route(V3, params, X, bias_E=np.full(E, b)) for b in (0.0, shift)
  )
  np.testing.assert_array_equal(plain.expert_N, moved.expert_N)
  np.testing.assert_array_equal(plain.weight_N, moved.weight_N)


def test_one_group_is_no_limit():
  params = {'kernel': matrix()}
  options = "score='softmax', scaling=1.0"
  a = route(f'sigmoid_top_k(k=2, {options})', params, X)
  b = route('top_k(k=2)', params, X)
  np.testing.assert_array_equal(a.expert_N, b.expert_N)
  np.testing.assert_allclose(a.weight_N, b.weight_N, rtol=1e-5)


ERRORS = [
  ('noisy_top_k(k=1)', 'k=1 makes every weight 1'),
  ('noisy_top_k(k=8)', 'k=8 exceeds num_experts=7'),
  ('noisy_top_k(noise_floor=0)', 'noise_floor=0 must be above 0'),
  ('gpt_oss(k=1)', 'gpt_oss: k=1 makes every weight 1'),
  ('gpt_oss(k=9)', 'k=9 exceeds num_experts=8'),
  ('llama4(k=9)', 'k=9 exceeds num_experts=8'),
  (
    "sigmoid_top_k(score='relu')",
    "score='relu'; valid: sigmoid, softmax, sqrt_s",
  ),
  ("sigmoid_top_k(group_score='sum')", "'sum'; valid: top_2, max"),
  ('sigmoid_top_k(k=1)', 'k=1 needs renormalize=False'),
  ('sigmoid_top_k(kept_groups=2)', 'kept_groups=2; valid: 1 to groups=1'),
  ('sigmoid_top_k(groups=3)', 'groups=3 must divide num_experts=8'),
  ('sigmoid_top_k(groups=8)', 'into groups of at least 2'),
  ('sigmoid_top_k(k=3, groups=4)', 'k=3 exceeds num_experts=2'),
]


@pytest.mark.parametrize(('spec', 'message'), ERRORS)
def test_errors(spec, message):
  with pytest.raises(ValueError, match=message):
    registry.build('routers', spec).check(E)
