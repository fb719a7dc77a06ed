"""Contracts of every balancing row."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax import registry, types
from moe_jax.balancing import base
from moe_jax.layers import linen, moe
from tests import methods, oracles, reference, reference_balancing

G, T, E, K, B = 4, 6, 5, 2, 2  # two sequences of two groups each
ids = lambda row: row.spec
with_loss = pytest.mark.parametrize(
  'row', [r for r in methods.rows('balancing') if r.oracle], ids=ids
)


def routings(seed=0, masked=5):
  rng = np.random.default_rng(seed)
  mask_GT = np.ones((G, T), bool)
  mask_GT[-1, T - masked :] = False
  choices = []
  for _ in range(G):
    logits = rng.normal(size=(T, E)) + np.linspace(0, 1, E)
    expert = np.argsort(-logits, -1)[:, :K]
    probs = oracles.softmax(logits)
    weight = np.take_along_axis(probs, expert, -1)
    smooth = rng.uniform(0.1, 1, size=(T, E))
    choices.append(
      oracles.Choice(expert, weight, probs, logits, smooth_load=smooth)
    )
  stack = lambda f: jnp.asarray(
    np.stack([f(c, m) for c, m in zip(choices, mask_GT)])
  )
  f32 = lambda v: v.astype(np.float32)
  r = types.Routing(
    token_N=jnp.tile(jnp.arange(T), (G, K)),
    expert_N=stack(
      lambda c, m: np.where(m[:, None], c.expert, E).T.reshape(-1)
    ).astype(jnp.int32),
    weight_N=stack(lambda c, m: f32(c.weight.T.reshape(-1))),
    logits_TE=stack(lambda c, m: f32(c.logits)),
    probs_TE=stack(lambda c, m: f32(c.probs)),
    terms={'smooth_load': stack(lambda c, m: f32(c.smooth_load))},
    num_experts=E,
    num_local=reference_balancing.LOCAL,
    choices=K,
  )
  return r, choices, mask_GT


@with_loss
def test_equals_reference(row):
  rule = registry.build('balancing', row.spec)
  r, choices, mask_GT = routings()
  total, losses, _ = base.evaluate([rule], r, jnp.asarray(mask_GT), B, (), {})
  if rule.scope == 'global':
    want = row.oracle(choices, mask_GT)
  else:
    size = 1 if rule.scope == 'group' else G // B
    cut = lambda v: [v[i : i + size] for i in range(0, G, size)]
    values = [row.oracle(c, m) for c, m in zip(cut(choices), cut(mask_GT))]
    # Mesh-TensorFlow's convention counts padding here too.
    over = np.ones_like if 'over_padding' in row.spec else np.asarray
    tokens = [np.sum(over(m)) for m in cut(mask_GT)]
    want = np.average(values, weights=tokens)
  name = base.name(rule)
  np.testing.assert_allclose(losses[name], want, rtol=1e-5)
  np.testing.assert_allclose(total, rule.weight * want, rtol=1e-5)


@with_loss
def test_padding_changes_nothing(row):
  rule = registry.build('balancing', row.spec)
  r, _, mask_GT = routings()
  mask = jnp.asarray(mask_GT)
  other = jnp.where(mask[..., None], r.logits_TE, 50.0)
  changed = r.replace(logits_TE=other, probs_TE=jax.nn.softmax(other * 2))
  changed = changed.replace(
    probs_TE=jnp.where(mask[..., None], r.probs_TE, changed.probs_TE)
  )
  a, b = (base.evaluate([rule], v, mask, B, (), {})[0] for v in (r, changed))
  np.testing.assert_array_equal(a, b)


def by_document(spec, segments, expert, length):
  """The loss of rows of tokens that choose `expert` with probability .94."""
  rule = registry.build('balancing', spec)
  segments, expert = np.asarray(segments), np.asarray(expert)
  probs = np.where(expert[..., None] == np.arange(4), 0.94, 0.02)
  mask = jnp.asarray(segments > 0).reshape(-1, length)
  r = types.Routing(
    token_N=jnp.tile(jnp.arange(length), (mask.shape[0], 1)),
    expert_N=jnp.where(mask, expert.reshape(-1, length), 4),
    weight_N=jnp.ones(mask.shape),
    logits_TE=jnp.log(probs.reshape(-1, length, 4)),
    probs_TE=jnp.asarray(probs.reshape(-1, length, 4), jnp.float32),
    num_experts=4,
    choices=1,
  )
  where = jnp.asarray(segments)
  losses = base.evaluate([rule], r, mask, len(segments), (), {}, where)[1]
  return float(losses[base.name(rule)])


def test_documents_of_a_packed_row_are_sequences():
  """Two of 4 tokens, each on one expert: 4 x .94, where the row has 1.92."""
  spec = "switch_loss(scope='sequence')"
  packed = [[1, 1, 1, 1, 2, 2, 2, 2]], [[0, 0, 0, 0, 1, 1, 1, 1]]
  for length in (8, 4, 2):  # of a routing group, in which segments go on
    assert by_document(spec, *packed, length) == pytest.approx(3.76)
  row = [[1] * 8], packed[1]
  assert by_document(spec, *row, 8) == pytest.approx(1.92)


@pytest.mark.parametrize(
  'spec',
  [
    "switch_loss(scope='sequence')",
    "switch_loss(scope='sequence', over_padding=True)",
    'sequence_loss()',
    'communication_loss(devices=2, limit=1)',
  ],
)
def test_packing_changes_nothing(spec):
  """Documents in a row, or each in its own; padding is of the one before it."""
  packed = [[0, 3, 3, 3, 5, 5, 5, 0, 0], [2, 2, 2, 2, 1, 1, 1, 1, 0]]
  chosen = [[0, 1, 1, 2, 1, 2, 0, 3, 3], [3, 3, 3, 2, 0, 0, 1, 2, 1]]
  # The same documents, cut and padded by hand.
  alone = [
    ([0, 3, 3, 3], [0, 1, 1, 2]),
    ([5, 5, 5, 0, 0], [1, 2, 0, 3, 3]),
    ([2, 2, 2, 2], [3, 3, 3, 2]),
    ([1, 1, 1, 1, 0], [0, 0, 1, 2, 1]),
  ]
  losses = [by_document(spec, [s], [e], len(s)) for s, e in alone]
  weight = len if 'over' in spec else np.count_nonzero
  want = np.average(losses, weights=[weight(s) for s, _ in alone])
  assert by_document(spec, packed, chosen, 3) == pytest.approx(want, rel=1e-5)


def test_a_layer_knows_the_documents_of_its_rows():
  """Packed into a row, or one a row: the same loss by sequence."""
  layer = linen.MoE(
    moe.MoE(
      num_experts=4,
      router=registry.build('routers', 'top_k(k=2)'),
      experts=registry.build('experts', 'mlp(d_ff=4)'),
      dispatch=registry.build('dispatch', 'einsum()'),
      balance=(registry.build('balancing', 'sequence_loss(weight=1.0)'),),
      group_size=4,
      capacity_factor=None,
    )
  )
  x = jax.random.normal(jax.random.key(0), (1, 8, 6))
  init = functools.partial(layer.init, train=False)
  params = jax.jit(init)(jax.random.key(1), x)

  @jax.jit
  def apply(x, segments):
    tokens = types.Tokens(mask=segments > 0, segments=segments)
    return layer.apply(params, x, tokens, train=True)[2].loss

  loss = lambda x, segments: float(apply(x, segments))

  place = jnp.arange(8)
  both = loss(x, jnp.where(place < 5, 1, 2)[None])
  first = loss(x, jnp.where(place < 5, 1, 0)[None])
  second = loss(x, jnp.where(place < 5, 0, 1)[None])
  assert both == pytest.approx((5 * first + 3 * second) / 8, rel=1e-6)
  assert abs(both - loss(x, jnp.ones((1, 8), int))) > 0.01


@pytest.mark.parametrize(
  'spec',
  [
    r.spec
    for r in methods.rows('balancing')
    if r.spec.startswith('switch_loss')
  ],
)
def test_balanced_routing_gives_one_or_what_is_published(spec):
  rule = registry.build('balancing', spec)
  expert = np.stack([np.arange(E), (np.arange(E) + 1) % E], 1)
  r = types.Routing(
    token_N=jnp.tile(jnp.arange(E), (1, 2)),
    expert_N=jnp.asarray(expert.T.reshape(1, -1), jnp.int32),
    weight_N=jnp.ones((1, 2 * E)),
    logits_TE=jnp.zeros((1, E, E)),
    probs_TE=jnp.full((1, E, E), 1 / E),
    num_experts=E,
    choices=2,
  )
  _, losses, _ = base.evaluate([rule], r, jnp.ones((1, E), bool), 1, (), {})
  # The conventions that are not normalised: K, and 1 + the second weight.
  want = {"count='union'": 2.0, 'second_weight': 1.5}
  want = next((v for k, v in want.items() if k in spec), 1.0)
  np.testing.assert_allclose(losses['switch_loss'], want, rtol=1e-6)


def test_switch_loss_of_hugging_face():
  """The numbers embedded in transformers' test of its router loss."""
  probs = np.array(
    [
      [0.35490513, 0.60419905],
      [0.4275843, 0.23061597],
      [0.32985854, 0.43953657],
      [0.25099766, 0.27730572],
      [0.7678207, 0.71474564],
    ]
  )
  rule = registry.build('balancing', 'switch_loss()')
  r = types.Routing(
    token_N=jnp.arange(5)[None],
    expert_N=jnp.asarray([[0, 1, 1, 0, 0]], jnp.int32),
    weight_N=jnp.ones((1, 5)),
    probs_TE=jnp.asarray(probs, jnp.float32)[None],
    num_experts=2,
    choices=1,
  )
  _, losses, _ = base.evaluate([rule], r, jnp.ones((1, 5), bool), 1, (), {})
  np.testing.assert_allclose(losses['switch_loss'], 0.874104, atol=1e-6)


def test_one_is_no_lower_bound():
  """51 tokens of (.51, .49) and 49 of (0, 1): 0.9904, below balance."""
  probs = np.array([[0.51, 0.49]] * 51 + [[0.0, 1.0]] * 49)
  choice = oracles.Choice(probs.argmax(-1)[:, None], None, probs, None)
  want = reference.switch_loss([choice], [np.ones(100, bool)])
  np.testing.assert_allclose(want, 0.990404, atol=1e-6)


def test_z_loss_of_zero_logits():
  rule = registry.build('balancing', 'z_loss()')
  r, _, mask_GT = routings()
  r = r.replace(logits_TE=jnp.zeros_like(r.logits_TE))
  _, losses, _ = base.evaluate([rule], r, jnp.asarray(mask_GT), B, (), {})
  np.testing.assert_allclose(losses['z_loss'], np.log(E) ** 2, rtol=1e-6)


def test_gradients_are_the_analytic_ones():
  """dL_B/dh = (alpha E / S) p (f - sum f p); dL_z/dh = 2 lse p / S."""
  r, choices, _ = routings()
  mask = jnp.ones((G, T), bool)
  switch = registry.build(
    'balancing', "switch_loss(scope='global', weight=1.0)"
  )
  z = registry.build('balancing', 'z_loss(weight=1.0)')

  def loss(logits, rule):
    routing = r.replace(logits_TE=logits, probs_TE=jax.nn.softmax(logits))
    return base.evaluate([rule], routing, mask, B, (), {})[0]

  p = np.stack([c.probs for c in choices])
  S = G * T
  first = np.concatenate([c.expert[:, 0] for c in choices])
  # Padding routes to nobody in the fixture: its edges are no choices.
  real = np.asarray(r.expert_N)[:, :T].reshape(-1) < E
  f = np.bincount(first[real], minlength=E) / real.sum()
  want = E / S * p * (f - (p * f).sum(-1, keepdims=True))
  got = jax.grad(loss)(r.logits_TE, switch)
  np.testing.assert_allclose(got, want, atol=1e-6)
  lse = np.log(np.exp(np.stack([c.logits for c in choices])).sum(-1))
  got = jax.grad(loss)(r.logits_TE, z)
  np.testing.assert_allclose(got, 2 / S * lse[..., None] * p, atol=1e-6)


def test_clean_or_noisy_logits():
  """z-loss: noisy in most code, clean in st-moe-pytorch; importance: clean."""
  r, choices, mask_GT = routings()
  clean = np.random.default_rng(1).normal(size=r.logits_TE.shape)
  r = r.replace(terms={'clean_logits': jnp.asarray(clean, jnp.float32)})
  others = [
    dataclasses.replace(c, logits=z, probs=oracles.softmax(z))
    for c, z in zip(choices, clean)
  ]
  for spec, oracle, seen in (
    ('z_loss()', reference.z_loss, choices),
    ('z_loss(noisy=False)', reference.z_loss, others),
    ("importance_loss(scope='global')", reference.importance_loss, others),
  ):
    rule = registry.build('balancing', spec)
    _, losses, _ = base.evaluate([rule], r, jnp.asarray(mask_GT), B, (), {})
    (got,) = losses.values()
    np.testing.assert_allclose(got, oracle(seen, mask_GT), rtol=1e-5)


@pytest.mark.parametrize(
  ('spec', 'message'),
  [
    ('load_loss()', 'needs a router that draws Gaussian noise'),
    ('switch_loss(second_weight=0.5)', 'this router has 1 choices of a token'),
  ],
)
def test_rules_say_what_they_need(spec, message):
  r, _, mask_GT = routings()
  first = lambda v: v[:, :T]
  r = r.replace(
    terms={},
    choices=1,
    token_N=first(r.token_N),
    expert_N=first(r.expert_N),
    weight_N=first(r.weight_N),
  )
  rule = registry.build('balancing', spec)
  with pytest.raises(ValueError, match=message):
    base.evaluate([rule], r, jnp.asarray(mask_GT), B, (), {})


# Of probabilities .5 .3 .15 .05 and two choices, before the policy:
# E (.5 x .5 + .5 x .3), and 2 + 0.5 x E x .3 / .5 with the second choices.
BEFORE_POLICY = {
  "switch_loss(count='all')": 1.6,
  "switch_loss(count='union')": 3.2,
  'switch_loss(second_weight=0.5)': 3.2,
  'device_loss(devices=4)': 1.6,
  'heterogeneous_loss()': 1.6,
  'null_loss()': 1.6,
}


@pytest.mark.parametrize(
  ('policy', 'sent'),
  [
    ("'threshold', threshold=0.38", [8, 0, 0, 0]),
    ("'random', threshold=1.0", None),
    ("'gshard'", [8, 8, 0, 0]),  # the seat stays taken
  ],
)
def test_losses_count_what_a_second_policy_leaves_unused(policy, sent):
  """As Mesh-TensorFlow's, whose policy comes after its losses."""
  router = registry.build('routers', f'top_k(k=2, second_policy={policy})')
  ctx = types.Context(
    jax.random.key(0), jnp.ones(8, bool), jnp.zeros(4), train=True
  )
  params = {'kernel': jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))}

  @jax.jit
  def run(params):
    r = router(params, jnp.ones((8, 1)), ctx)
    r, mask = jax.tree.map(lambda v: v[None], r), jnp.ones((1, 8), bool)
    evaluate = lambda spec: base.evaluate(
      [registry.build('balancing', spec)], r, mask, 1, (), {}
    )
    losses = {k: evaluate(k)[1] for k in BEFORE_POLICY}
    stats = evaluate('loss_free_bias()')[2]
    return losses, stats, base.Sums(r, mask, 1).load()[0]

  losses, stats, load_E = run(params)
  for spec, want in BEFORE_POLICY.items():
    (got,) = losses[spec].values()
    np.testing.assert_allclose(got, want, rtol=1e-6, err_msg=spec)
  np.testing.assert_array_equal(stats['loss_free_bias']['load'], load_E)
  if sent:
    assert list(load_E) == sent
  else:
    assert load_E[0] == 8 and 0 < load_E[1] < 8


def test_an_empty_segment_is_balanced():
  zeros = jnp.zeros((2, E)).at[1].set(jnp.arange(E))
  value, gradient = jax.value_and_grad(lambda v: base.squared_cv(v).sum())(
    zeros
  )
  np.testing.assert_allclose(value, np.var(np.arange(E)) / 4, rtol=1e-6)
  assert np.isfinite(gradient).all()


def test_loss_free_bias_follows_the_load():
  rule = registry.build('balancing', 'loss_free_bias(rate=0.5)')
  r, choices, mask_GT = routings()
  _, losses, stats = base.evaluate([rule], r, jnp.asarray(mask_GT), B, (), {})
  assert losses == {}
  load = np.zeros(E, int)
  for c, m in zip(choices, mask_GT):
    np.add.at(load, c.expert[m].reshape(-1), 1)
  np.testing.assert_array_equal(stats['loss_free_bias']['load'], load)
  assert stats['loss_free_bias']['load'].dtype == jnp.int32
  states = base.init_states([rule], E)
  new = base.update_states([rule], states, stats)
  want = 0.5 * np.sign(load.mean() - load)
  np.testing.assert_array_equal(new['loss_free_bias'], want)
  np.testing.assert_array_equal(base.selection_bias([rule], new, E), want)
  # A stack of layers updates each on its own.
  stack = lambda v: jnp.stack([v, v[::-1]])
  both = base.update_states(
    [rule], jax.tree.map(stack, states), jax.tree.map(stack, stats)
  )
  np.testing.assert_array_equal(both['loss_free_bias'][1], want[::-1])


def test_unknown_scope_and_count_list_the_valid_ones():
  with pytest.raises(ValueError, match="scope='batch'; valid: global, group"):
    registry.build('balancing', "switch_loss(scope='batch')")
  with pytest.raises(ValueError, match="count='top'; valid: first, all"):
    registry.build('balancing', "switch_loss(count='top')")
