"""Noisy top-k gating: Shazeer's softmax over the kept, and smooth loads."""

import math

import numpy as np
import pytest

from moe_jax import registry
from tests.lazy import balancing, jax, jnp, routing, types
from tests.methods import Row
from tests.oracles import linear, softmax_of_chosen


def noisy_top_k(x_TD, params, bias_E, seen, *, k):
  """Equation 3, without the noise."""
  return softmax_of_chosen(linear(x_TD, params), bias_E, k)


def smooth_load(clean, noisy, std, k):
  """Shazeer et al., equation 9, an expert at a time."""
  E = len(clean)
  out = []
  for e in range(E):
    others = sorted((noisy[i] for i in range(E) if i != e), reverse=True)
    z = (clean[e] - others[k - 1]) / std[e]
    out.append(0.5 * math.erfc(-z / math.sqrt(2)))
  return np.array(out)


ROWS = (
  Row(
    'noisy_top_k(k=2)',
    '1701.06538',
    noisy_top_k,
    always=True,
    extremes=True,
    noisy=True,
    initial=lambda r, E, D: dict.fromkeys(('kernel', 'noise'), np.zeros(E)),
  ),
)
ERRORS = {
  'noisy_top_k(k=1)': 'k=1 makes every weight 1',
  'noisy_top_k(k=8)': 'k=8 exceeds num_experts=7',
  'noisy_top_k(noise_floor=0)': 'noise_floor=0 must be above 0',
}
E, D, T = 8, 6, 64
X, KERNEL, NOISE = (
  np.float32(np.random.default_rng(i).normal(size=shape))
  for i, shape in enumerate(((T, D), (D, E), (D, E)))
)
NOISY = {'kernel': KERNEL, 'noise': NOISE}
STD = np.logaddexp(0, X @ NOISE) + 0.01


@pytest.mark.parametrize('train', [True, False])
def test_smooth_load_has_a_bar_among_the_others(train):
  r = routing.route('noisy_top_k(k=3)', X, NOISY, train=train)
  noisy, clean = np.asarray(r.logits_TE), np.asarray(r.terms['clean_logits'])
  np.testing.assert_allclose(clean, X @ KERNEL, rtol=2e-4)
  assert (np.abs(noisy - clean).max() > 0.1) == train
  for t in range(T):
    want = smooth_load(clean[t], noisy[t], STD[t], 3)
    np.testing.assert_allclose(
      r.terms['smooth_load'][t], want, rtol=1e-3, atol=1e-6
    )


def context(key):
  return types.Context(key, jnp.ones(T, bool), jnp.zeros(E), train=True)


def test_smooth_load_is_the_expected_count():
  """Over draws of all noise: by expert, and K T in all (appendix A)."""
  router = registry.build('routers', 'noisy_top_k(k=2)')

  def one(key):
    r = router(NOISY, X, context(key))
    counts = jnp.zeros(E).at[r.expert_N].add(1)
    return counts, r.terms['smooth_load'].sum(0), r.logits_TE

  keys = jax.random.split(jax.random.key(3), 300)
  counts, load, h = jax.jit(jax.vmap(one))(keys)
  # 0.3 is one standard error here.
  np.testing.assert_allclose(load.mean(0).sum(), 2 * T, atol=0.9)
  np.testing.assert_allclose(load.mean(0), counts.mean(0), rtol=0.05, atol=0.2)
  np.testing.assert_allclose(h.std(0), STD, rtol=0.25)


def test_losses_and_their_gradients():
  """Importance sums the sparse gates; the load reaches both matrices."""
  router = registry.build('routers', 'noisy_top_k(k=2)')
  ctx = context(jax.random.key(0))

  @jax.jit
  def losses(params):
    r = jax.tree.map(lambda v: v[None], router(params, X, ctx))
    evaluate = lambda name: balancing.evaluate(
      [registry.build('balancing', f'{name}()')],
      *(r, ctx.mask_T[None], 1, (), {}),
    )[1][name]
    return evaluate('load_loss'), evaluate('importance_loss'), r

  gradient = jax.grad(lambda p: losses(p)[0])(NOISY)
  assert all(np.abs(g).max() > 1e-4 for g in gradient.values())
  _, got, r = losses(NOISY)
  total = np.zeros(E)
  np.add.at(total, np.asarray(r.expert_N[0]), np.asarray(r.weight_N[0]))
  want = (total.std() / total.mean()) ** 2
  np.testing.assert_allclose(got, want, rtol=1e-4)


def test_it_starts_balanced():
  x = np.random.default_rng(0).normal(size=(4000, D))
  r = routing.route('noisy_top_k(k=2)', x, train=True)
  share = np.bincount(np.asarray(r.expert_N), minlength=E) / 8000
  np.testing.assert_allclose(share, 1 / E, rtol=0.1)
