"""Contracts of every balancing row."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax import registry, types
from moe_jax.balancing import base
from moe_jax.layers import moe
from tests import balances, methods
from tests.balances import B, E, G, T

with_loss = pytest.mark.parametrize(
  'row',
  balances.rows(),
  ids=lambda row: row.spec,
)


@with_loss
def test_equals_reference(row):
  r, choices, mask_GT = balances.uneven()
  want = balances.expected(row, choices, mask_GT, B)
  total, loss, _ = balances.evaluate(row.spec, r, mask_GT, B)
  weight = registry.build('balancing', row.spec).weight
  np.testing.assert_allclose(loss, want, rtol=1e-5)
  np.testing.assert_allclose(total, weight * want, rtol=1e-5)


@with_loss
def test_padding_changes_nothing(row):
  r, _, mask_GT = balances.uneven()
  real = mask_GT[..., None]
  other = r.replace(
    logits_TE=jnp.where(real, r.logits_TE, 50.0),
    probs_TE=jnp.where(real, r.probs_TE, 0.9),
  )
  a, b = (balances.loss(row.spec, v, mask_GT, B) for v in (r, other))
  np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('sure', [0, 1])
@with_loss
def test_balanced_routing_gives_one_or_what_is_documented(row, sure):
  expert = balances.even()
  logits = np.zeros((G, T, E))
  if sure:
    np.put_along_axis(logits, expert[..., 1:], 15.0, -1)
    np.put_along_axis(logits, expert[..., :1], 30.0, -1)
  got = balances.loss(row.spec, balances.routing(logits, expert))
  np.testing.assert_allclose(got, row.balanced[sure], rtol=1e-5, atol=1e-5)


@with_loss
def test_gradients_flow_and_padding_has_none(row):
  """Of logits and affinities both, at even loads or not; all finite."""
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(G, T, E)).astype(np.float32)
  expert, mask = balances.largest(logits), np.ones((G, T), bool)
  mask[1, 4:] = False
  logits[1, 3, 0] = 200.0  # an affinity of exactly 1, others of exactly 0
  fixed = balances.routing(logits, expert, mask_GT=mask)

  @jax.jit
  @jax.grad
  def gradient(logits):
    p = jax.nn.softmax(logits)
    terms = {'smooth_load': p}
    r = fixed.replace(logits_TE=logits, probs_TE=p, terms=terms)
    return balances.loss(row.spec, r, mask, B)

  got = np.asarray(gradient(logits))
  assert np.isfinite(got).all() and (got[~mask] == 0).all()
  real = np.abs(got[mask])
  assert real.max() < 1e-6 if row.flat else np.median(real) > 1e-6


@with_loss
def test_rules_say_what_they_need(row):
  r = balances.routing(np.zeros((G, T, E)), balances.even())
  r = r.replace(logits_TE=None, probs_TE=None, terms={})
  sums = base.Sums(r, jnp.ones((G, T), bool), 1)
  name = registry.parse(row.spec)[0]
  with pytest.raises(ValueError, match=f'{name} needs a router '):
    registry.build('balancing', row.spec).stats(sums)


@pytest.mark.parametrize('name', registry.names('balancing'))
def test_no_weight_is_negative(name):
  """Of any rule: its loss would reward what the rule is there to prevent."""
  cls = registry.method_class('balancing', name)
  weights = [
    f.name
    for f in dataclasses.fields(cls)
    if f.init and f.name.endswith('weight')
  ]
  assert weights or name in ('bip', 'loss_free_bias')  # rules without a loss
  for field in weights:
    assert getattr(cls(**{field: 0.0}), field) == 0
    for value in (-0.01, float('nan')):
      with pytest.raises(ValueError, match=f'^{name}: {field}={value} must be'):
        cls(**{field: value})


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
  layer = moe.MoE(
    num_experts=4,
    router='top_k(k=2)',
    experts='mlp(d_ff=4)',
    dispatch='einsum()',
    balance=('sequence_loss(weight=1.0)',),
    group_size=4,
    capacity_factor=None,
  )
  x = jax.random.normal(jax.random.key(0), (1, 8, 6))
  params = jax.jit(layer.init, static_argnums=1)(jax.random.key(1), 6)

  @jax.jit
  def apply(x, segments):
    tokens = types.Tokens(mask=segments > 0, segments=segments)
    return layer(params, {}, x, tokens, train=True)[2].loss

  loss = lambda x, segments: float(apply(x, segments))
  place = jnp.arange(8)
  both = loss(x, jnp.where(place < 5, 1, 2)[None])
  first = loss(x, jnp.where(place < 5, 1, 0)[None])
  second = loss(x, jnp.where(place < 5, 0, 1)[None])
  assert both == pytest.approx((5 * first + 3 * second) / 8, rel=1e-6)
  assert abs(both - loss(x, jnp.ones((1, 8), int))) > 0.01


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
  np.testing.assert_allclose(value, np.var(np.arange(E)) / 2.5**2, rtol=1e-6)
  assert np.isfinite(gradient).all()


@pytest.mark.parametrize(('spec', 'message'), methods.errors('balancing'))
def test_errors(spec, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    balances.loss(spec, balances.uneven()[0])
