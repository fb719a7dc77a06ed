"""Contracts of every router row."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax import registry, types
from moe_jax.balancing import base as balancing
from tests import methods, oracles
from tests.routing import D, E, T, build, group, permuted, seen, table

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
  router(params, x_TD, ctx.replace(key=None, train=False))


@each_router
def test_gradient_reaches_every_parameter(row):
  """In training, where noise has parameters of its own."""
  router, params, _ = build(row)
  x_TD, ctx = group(row=row)

  @jax.jit
  def loss(p):
    r = router(p, x_TD, ctx.replace(train=True))
    y_N = jax.random.normal(jax.random.key(3), r.weight_N.shape)
    return (r.weight_N * y_N).sum()

  # Weights that are renormalised over true experts say nothing of others.
  learns = E if 'adamoe' not in row.spec else E - row.local
  for leaf in jax.tree.leaves(jax.grad(loss)(params)):
    leaf = leaf[..., :learns]
    assert np.isfinite(leaf).all()
    assert ((np.abs(leaf).max(axis=0) > 1e-6) != row.frozen).all()


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


JITTERS = {
  # What (clean logits, noisy logits) differ by, and its largest size.
  'input': lambda x, w, z: (np.abs(x) @ np.abs(w)).max(),
  'logits': lambda x, w, z: np.abs(z).max(),
  'logits_added': lambda x, w, z: 1.0,
}


@pytest.mark.parametrize('eps', [0.0, 0.3])
@pytest.mark.parametrize('on', JITTERS)
def test_jitter_in_its_three_published_meanings(eps, on):
  """Switch appendix C, ST-MoE section 3.2, Switch appendix F; training only."""
  router = registry.build('routers', f'switch(jitter={eps}, jitter_on={on!r})')
  params = router.init(jax.random.key(0), E, D)
  x_TD, ctx = group()
  clean = router(params, x_TD, ctx)
  noisy = router(params, x_TD, ctx.replace(train=True))
  difference = noisy.logits_TE - clean.logits_TE
  if on == 'logits_added' and eps:
    difference -= 1  # U(1 - eps, 1 + eps) is added, not eps alone
  bound = eps * JITTERS[on](
    np.asarray(x_TD), np.asarray(params['kernel']), np.asarray(clean.logits_TE)
  )
  assert np.abs(difference).max() <= bound + 1e-6
  assert (np.abs(difference).max() > 0.3 * bound) == (eps > 0)
  if eps:
    np.testing.assert_array_equal(noisy.terms['clean_logits'], clean.logits_TE)
    with pytest.raises(ValueError, match="'router' random stream"):
      router(params, x_TD, ctx.replace(train=True, key=None))


def test_jitter_on_logits_is_a_factor_of_each():
  router = registry.build('routers', "switch(jitter=0.5, jitter_on='logits')")
  params = router.init(jax.random.key(0), E, D)
  x_TD, ctx = group()
  r = router(params, x_TD, ctx.replace(train=True))
  factor = r.logits_TE / r.terms['clean_logits']
  assert 0.5 <= factor.min() < 0.7 and 1.3 < factor.max() <= 1.5


def test_input_dropout():
  """Switch Transformer, table 11: some inputs are 0, the rest scaled up."""
  router = registry.build('routers', 'switch(input_dropout=0.5)')
  params = {'kernel': jnp.ones((D, E))}
  _, ctx = group()
  r = router(params, jnp.ones((T, D)), ctx.replace(train=True))
  kept = np.asarray(r.logits_TE[:, 0]) / 2
  np.testing.assert_allclose(kept, np.round(kept), atol=1e-6)
  assert 0.3 < kept.mean() / D < 0.7 and len(set(kept.round())) > 2
  r = router(params, jnp.ones((T, D)), ctx)
  np.testing.assert_allclose(r.logits_TE, D)


def many(spec, logits_E, n=4000, train=True):
  """A router on n tokens of the same logits, as NumPy [n, K] and probs."""
  router = registry.build('routers', spec)
  E_ = len(logits_E)
  ctx = types.Context(
    key=jax.random.key(5),
    mask_T=jnp.ones(n, bool),
    selection_bias_E=jnp.zeros(E_),
    train=train,
  )
  params = {'kernel': jnp.asarray(logits_E, jnp.float32)[None]}
  r = jax.jit(router)(params, jnp.ones((n, 1)), ctx)
  K = r.choices
  by_token = lambda v: np.asarray(v).reshape(K, n).T
  return by_token(r.expert_N), by_token(r.weight_N), r


LOGITS = np.log([0.5, 0.3, 0.15, 0.05])


def test_sampling_draws_from_the_softmax():
  expert, weight, r = many('switch(sample=1.0)', LOGITS)
  share = np.bincount(expert[:, 0], minlength=4) / 4000
  np.testing.assert_allclose(share, np.exp(LOGITS), atol=0.03)
  np.testing.assert_allclose(
    weight[:, 0], np.asarray(r.probs_TE)[0][expert[:, 0]], rtol=1e-6
  )
  assert (many('switch(sample=1.0)', LOGITS, train=False)[0] == 0).all()
  cold = many('switch(sample=0.01)', LOGITS)[0]
  assert (cold == 0).mean() > 0.99


# ST-MoE, appendix G: share s of the second is 0.375 of the two here, and
# GShard sends with 2 s.
POLICIES = [
  ("second_policy='all'", 1.0, 1.0),
  ("second_policy='threshold', threshold=0.37", 1.0, 1.0),
  ("second_policy='threshold', threshold=0.38", 0.0, 0.0),
  ("second_policy='random', threshold=0.2", 1.0, 1.0),
  ("second_policy='random', threshold=0.5", 0.75, 0.75),
  ("second_policy='random', threshold=1.0", 0.375, 0.375),
  # The seats of those not sent are taken all the same, with weight 0.
  ("second_policy='gshard'", 1.0, 0.75),
  ("second_policy='gshard', renormalize=False", 1.0, 0.75),
]


@pytest.mark.parametrize(('options', 'seats', 'sent'), POLICIES)
def test_second_policies(options, seats, sent):
  expert, weight, _ = many(f'top_k(k=2, {options})', LOGITS)
  assert (expert[:, 0] == 0).all() and (weight[:, 0] > 0).all()
  assert set(expert[:, 1]) <= {1, 4}
  np.testing.assert_allclose((expert[:, 1] == 1).mean(), seats, atol=0.03)
  np.testing.assert_allclose((weight[:, 1] > 0).mean(), sent, atol=0.03)
  # Renormalised before the policy: the first keeps its share (MTF).
  first = 0.5 if 'renormalize=False' in options else 0.625
  np.testing.assert_allclose(weight[:, 0], first, rtol=1e-5)


@pytest.mark.parametrize('renormalize', [True, False])
def test_second_policy_is_off_in_evaluation_unless_asked(renormalize):
  """Trap: Mesh-TensorFlow and st-moe-pytorch draw in evaluation too."""
  spec = (
    f"top_k(renormalize={renormalize}, second_policy='random', threshold=1.0"
  )
  expert, _, _ = many(f'{spec})', LOGITS, train=False)
  assert (expert[:, 1] == 1).all()
  expert, _, _ = many(f'{spec}, policy_in_eval=True)', LOGITS, train=False)
  np.testing.assert_allclose((expert[:, 1] == 1).mean(), 0.375, atol=0.03)


def test_later_policies_look_at_shares_of_all_k():
  """ST-MoE renormalises over the top n, here three: 0.3 of 0.95, 0.15 of it."""
  expert, _, _ = many(
    "top_k(k=3, second_policy='random', threshold=1.0)", LOGITS
  )
  np.testing.assert_allclose((expert[:, 1] == 1).mean(), 0.3 / 0.95, atol=0.03)
  np.testing.assert_allclose((expert[:, 2] == 2).mean(), 0.15 / 0.95, atol=0.03)


def test_sampled_second_choice():
  """lingvo's 'sampling': by the softmax of the experts that are left."""
  expert, weight, _ = many("top_k(second_policy='sampled')", LOGITS)
  assert (expert[:, 0] == 0).all()
  share = np.bincount(expert[:, 1], minlength=4) / 4000
  np.testing.assert_allclose(share, [0, 0.6, 0.3, 0.1], atol=0.03)
  p = np.exp(LOGITS)[expert]
  np.testing.assert_allclose(weight, p / p.sum(1, keepdims=True), rtol=1e-5)


def test_vmoe_noise_and_smooth_load():
  """Noise of deviation 1 / E; the load is what drawing again would choose."""
  logits = np.array([0.3, 0.25, 0.1, -0.1])
  expert, weight, r = many('vmoe(k=2)', logits, n=20000)
  noise = np.asarray(r.logits_TE) - logits
  np.testing.assert_allclose(noise.std(0), 0.25, rtol=0.03)
  np.testing.assert_allclose(noise.mean(0), 0.0, atol=0.01)
  np.testing.assert_allclose(r.terms['clean_logits'][0], logits, rtol=1e-6)
  # Raw weights of the noisy softmax.
  probs = oracles.softmax(np.asarray(r.logits_TE, np.float64))
  np.testing.assert_allclose(
    weight, np.take_along_axis(probs, expert, 1), rtol=1e-5
  )
  # By hand for one token: the second largest noisy logit is the bar.
  bar = np.sort(np.asarray(r.logits_TE[0]))[-2]
  want = [0.5 * math.erfc(-(z - bar) / 0.25 / math.sqrt(2)) for z in logits]
  np.testing.assert_allclose(r.terms['smooth_load'][0], want, rtol=1e-4)
  quiet = many('vmoe(k=2)', logits, n=4, train=False)
  assert (quiet[0] == [0, 1]).all() and 'clean_logits' not in quiet[2].terms


def test_vmoe_load_has_a_gradient_and_counts_have_none():
  rule = registry.build('balancing', 'load_loss()')
  router = registry.build('routers', 'vmoe()')
  params = router.init(jax.random.key(0), E, D)
  x_TD, ctx = group()

  def loss(params):
    r = router(params, x_TD, ctx.replace(train=True))
    r = jax.tree.map(lambda v: v[None], r)
    return balancing.evaluate([rule], r, ctx.mask_T[None], 1, (), {})[0]

  assert np.abs(jax.grad(loss)(params)['kernel']).max() > 1e-6


def test_selective_precision():
  """Off, a bf16 model routes in bf16 (Switch Transformer, table 2)."""
  x_TD, ctx = group(dtype=jnp.bfloat16)
  exact = registry.build('routers', 'switch()')
  rough = registry.build('routers', 'switch(selective_precision=False)')
  params = exact.init(jax.random.key(0), E, D)
  want = np.asarray(x_TD, np.float32) @ np.asarray(params['kernel'])
  np.testing.assert_allclose(
    exact(params, x_TD, ctx).logits_TE, want, rtol=1e-5
  )
  r = rough(params, x_TD, ctx)
  assert r.logits_TE.dtype == r.probs_TE.dtype == jnp.float32
  for v in (r.logits_TE, r.probs_TE):  # rounded to bf16 on the way
    np.testing.assert_array_equal(v, v.astype(jnp.bfloat16))
  np.testing.assert_allclose(r.logits_TE, want, atol=0.02)
  # Without bf16 tokens there is nothing to give up.
  x_TD = x_TD.astype(jnp.float32)
  a, b = exact(params, x_TD, ctx), rough(params, x_TD, ctx)
  np.testing.assert_allclose(a.probs_TE, b.probs_TE, rtol=1e-6)


@pytest.mark.parametrize(
  ('options', 'std'), [('', (0.1 / 256) ** 0.5), ('init_std=0.02', 0.02)]
)
def test_router_initialisation(options, std):
  """Scale 0.1 by fan-in, truncated at two deviations; or a plain normal."""
  router = registry.build('routers', f'switch({options})')
  w = np.asarray(router.init(jax.random.key(0), 64, 256)['kernel'])
  np.testing.assert_allclose(w.std(), std, rtol=0.03)
  # Truncated at 2 deviations of a normal that is wider by 1 / 0.8796.
  assert (np.abs(w).max() <= 2 / 0.8796 * std * 1.001) == (options == '')


def test_softmax_of_the_chosen_logits_is_renormalised_top_k():
  """Mixtral's form equals Shazeer's: lecture notes' equivalence."""
  _, params, route = build(methods.Row('top_k()'))
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
