"""What the balancing rules are at balance, their gradients, special cases."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax import registry, types
from moe_jax.balancing import base
from tests import methods, oracles, reference_losses

E, K, T, G = 6, 2, 12, 2
LN = np.log(E)
with_loss = [r.spec for r in methods.rows('balancing') if r.oracle]

# Of even loads: loss where every affinity is 1 / E, and where all tokens are
# sure of their first choices, which are even too. The default is (1, 1).
AT_BALANCE = {
  'switch_loss(count=union)': (K, K),
  'switch_loss(second_weight)': (1.5, 1.5),
  'z_loss': (LN**2, 30**2),
  'importance_loss': (0, 0),
  'load_loss': (0, 0),
  'entropy_loss': (LN, 0),
  'mutual_information': (0, -LN),
  'top1_loss': (E, 1),
  # Even here; the least value, 1, is where local experts have a third more.
  'heterogeneous_loss': ((4 + 2 * 0.75) * (4 + 2 / 0.75) / E**2,) * 2,
}


def built(spec):
  """The rule, with groups of experts that fit E here."""
  fit = {'devices=5, limit=2': 'devices=3, limit=2', 'devices=5': 'devices=3'}
  for old, new in fit.items():
    if old in spec:
      return registry.build('balancing', spec.replace(old, new))
  return registry.build('balancing', spec)


def routing(logits_GTE, expert_GTK, probs_GTE=None, mask_GT=None):
  G, T, E = logits_GTE.shape
  K = expert_GTK.shape[-1]
  if mask_GT is not None:
    expert_GTK = np.where(mask_GT[..., None], expert_GTK, E)
  probs_GTE = jax.nn.softmax(logits_GTE) if probs_GTE is None else probs_GTE
  edges = np.asarray(expert_GTK).transpose(0, 2, 1).reshape(G, K * T)
  return types.Routing(
    token_N=jnp.tile(jnp.arange(T), (G, K)),
    expert_N=jnp.asarray(edges, jnp.int32),
    weight_N=jnp.ones((G, K * T)),
    logits_TE=jnp.asarray(logits_GTE, jnp.float32),
    probs_TE=jnp.asarray(probs_GTE, jnp.float32),
    terms={'smooth_load': jnp.asarray(probs_GTE, jnp.float32)},
    num_experts=E,
    num_local=2,
    choices=K,
  )


def loss(rule, r, mask_GT=None, sequences=1):
  mask = jnp.ones(r.probs_TE.shape[:2], bool) if mask_GT is None else mask_GT
  _, losses, _ = base.evaluate([rule], r, mask, sequences, (), {})
  (value,) = losses.values()
  return value


def even():
  """Choices of T tokens in each of G groups, every expert as often."""
  first = np.broadcast_to(np.arange(T) % E, (G, T))
  # The second choice is on another device of three.
  return np.stack([first, (first + 2) % E], -1)


@pytest.mark.parametrize('sure', [0, 1])
@pytest.mark.parametrize('spec', with_loss)
def test_balanced_routing_gives_one_or_what_is_documented(spec, sure):
  rule, expert = built(spec), even()
  name = spec.partition('(')[0]
  key = {"count='union'": '(count=union)', 'second_w': '(second_weight)'}
  key = name + next((v for k, v in key.items() if k in spec), '')
  logits = np.zeros((G, T, E))
  if sure:
    np.put_along_axis(logits, expert[..., 1:], 15.0, -1)
    np.put_along_axis(logits, expert[..., :1], 30.0, -1)
  want = AT_BALANCE.get(key, (1, 1))[sure]
  got = loss(rule, routing(logits, expert))
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('spec', with_loss)
def test_gradients_flow_and_padding_has_none(spec):
  """Of logits and affinities both, at even loads or not; all finite."""
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(G, T, E)).astype(np.float32)
  expert = np.argsort(-logits, -1)[..., :K]
  mask = np.ones((G, T), bool)
  mask[1, 7:] = False
  logits[1, 6, 0] = 200.0  # an affinity of exactly 1, others of exactly 0
  rule, fixed = built(spec), routing(logits, expert, mask_GT=mask)

  @jax.jit
  @jax.grad
  def gradient(logits):
    p = jax.nn.softmax(logits)
    terms = {'smooth_load': p}
    r = fixed.replace(logits_TE=logits, probs_TE=p, terms=terms)
    return loss(rule, r, jnp.asarray(mask), 2)

  got = np.asarray(gradient(logits))
  assert np.isfinite(got).all() and (got[~mask] == 0).all()
  real = np.abs(got[mask])
  if spec.startswith('device_loss(devices=1'):
    # One device: the sum of the affinities, which is 1 for all.
    assert real.max() < 1e-6
  else:
    assert np.median(real) > 1e-6


def sigmoid_case():
  """Sigmoid affinities, and choices by another order: a selection bias."""
  rng = np.random.default_rng(1)
  logits = rng.normal(size=(G, T, E))
  gates = 1 / (1 + np.exp(-logits))
  biased = np.argsort(-(gates + rng.normal(size=E)), -1)[..., :K]
  choices = [
    oracles.Choice(e, None, g, z) for e, g, z in zip(biased, gates, logits)
  ]
  return routing(logits, biased, gates), choices


def test_sequence_loss_is_of_affinities_alone():
  """f counts the largest affinities, not the biased choices; P is relative."""
  rule = registry.build('balancing', 'sequence_loss()')
  r, choices = sigmoid_case()
  masks = np.ones((1, T), bool)
  want = np.mean([reference_losses.sequence_loss([c], masks) for c in choices])
  np.testing.assert_allclose(loss(rule, r, None, G), want, rtol=1e-6)
  halves = np.arange(T) < T // 2
  want = np.mean(
    [
      reference_losses.sequence_loss([c], [half])
      for c in choices
      for half in (halves, ~halves)
    ]
  )
  np.testing.assert_allclose(loss(rule, r, None, 2 * G), want, rtol=1e-6)
  other = r.replace(expert_N=(r.expert_N + 1) % E)
  assert loss(rule, r, None, G) == loss(rule, other, None, G)
  relative = r.replace(probs_TE=r.probs_TE / r.probs_TE.sum(-1, keepdims=True))
  np.testing.assert_allclose(
    loss(rule, r, None, G), loss(rule, relative, None, G), rtol=1e-6
  )
  # With softmax affinities and no bias it is the loss over all choices.
  logits = np.random.default_rng(2).normal(size=(G, T, E))
  r = routing(logits, np.argsort(-logits, -1)[..., :K])
  switch = "switch_loss(count='all', scope='sequence')"
  switch = registry.build('balancing', switch)
  np.testing.assert_allclose(
    loss(rule, r, None, G), loss(switch, r, None, G), rtol=1e-6
  )


def test_device_losses_between_their_limits():
  """A group an expert is the expert loss; a token counts once a device."""
  rng = np.random.default_rng(3)
  logits = rng.normal(size=(G, T, E))
  r = routing(logits, np.argsort(-logits, -1)[..., :K])
  build = functools.partial(registry.build, 'balancing')
  expert = loss(build("switch_loss(count='all', scope='global')"), r)
  each = loss(build(f"device_loss(devices={E}, scope='global')"), r)
  np.testing.assert_allclose(each, expert, rtol=1e-6)
  spec = f"communication_loss(devices={E}, limit={K}, scope='global')"
  np.testing.assert_allclose(loss(build(spec), r), expert, rtol=1e-6)
  # Both choices on the first of two devices: twice the assignments, one send.
  expert_GTK = np.broadcast_to([0, 2], (G, T, 2))
  logits = np.zeros((G, T, E))
  logits[..., :3] = 30.0
  r = routing(logits, expert_GTK)
  rules = 'device_loss(devices=2)', 'communication_loss(devices=2, limit=1)'
  for spec in rules:
    np.testing.assert_allclose(loss(build(spec), r), 2.0, rtol=1e-6)
  halved = build('communication_loss(devices=2, limit=2)')
  np.testing.assert_allclose(loss(halved, r), 1.0, rtol=1e-6)


@pytest.mark.parametrize('seed', range(4))
def test_device_losses_equal_loops(seed):
  """Groups of two experts, with padding."""
  rng = np.random.default_rng(seed)
  logits, masks = rng.normal(size=(G, T, E)), rng.uniform(size=(G, T)) < 0.8
  expert = np.argsort(-logits, -1)[..., :K]
  probs = oracles.softmax(logits)
  choices = [
    oracles.Choice(e, None, p, z) for e, p, z in zip(expert, probs, logits)
  ]
  r = routing(logits, expert, mask_GT=masks)
  for name, options in (
    ('device_loss', {'devices': 3}),
    ('communication_loss', {'devices': 3, 'limit': 2}),
  ):
    rule = registry.build('balancing', f"{name}(scope='global')", **options)
    want = getattr(reference_losses, name)(choices, masks, **options)
    got = loss(rule, r, jnp.asarray(masks))
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize('temperature', [0.02, 0.1, 1.0, 10.0])
def test_top1_loss_has_a_floor_that_the_switch_loss_has_not(temperature):
  """1 at least; shrinking the logits fools the Switch loss, not this one."""
  rule = registry.build('balancing', 'top1_loss()', temperature=temperature)
  switch = registry.build('balancing', "switch_loss(scope='global')")
  for seed in range(5):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(G, T, E)) + np.linspace(0, 2, E)
    first = logits.argmax(-1)[..., None]
    assert loss(rule, routing(logits, first)) >= 1
    flat = routing(logits / 1000, first)
    assert abs(loss(switch, flat) - 1) < 0.01
    assert loss(rule, flat) > 1.5


def update(spec, load):
  rule = registry.build('balancing', spec)
  bias = rule.init(len(load))
  return np.asarray(rule.update(bias, {'load': jnp.asarray(load, jnp.int32)}))


def test_loss_free_updates():
  """By hand: loads of mean 2.5; centred changes add up to 0."""
  load = [1, 2, 2, 5]
  signs = [0.1, 0.1, 0.1, -0.1]
  np.testing.assert_allclose(update('loss_free_bias(rate=0.1)', load), signs)
  np.testing.assert_allclose(
    update('loss_free_bias(rate=0.1, centered=True)', load),
    [0.05, 0.05, 0.05, -0.15],
    atol=1e-8,
  )
  spec = "loss_free_bias(rate=0.1, update_by='proportional')"
  relative = [0.06, 0.02, 0.02, -0.1]
  np.testing.assert_allclose(update(spec, load), relative, atol=1e-8)
  # The batch's size does not matter, nor does an empty one.
  np.testing.assert_allclose(
    update(spec, [1000 * v for v in load]), relative, atol=1e-8
  )
  np.testing.assert_array_equal(update(spec, [0] * 4), [0] * 4)
  np.testing.assert_array_equal(update('loss_free_bias()', [7] * 4), [0] * 4)


def test_loss_free_updates_at_the_largest_batches():
  """264M tokens of 8 choices over 64 experts; off the mean by one, and 5 fold.

  E times a load does not fit int32, and float32 cannot tell the mean from the
  mean and one.
  """
  E, mean = 64, 33_000_001
  assert np.float32(mean) == np.float32(mean - 1)
  load = np.full(E, mean)
  load[0] += 1
  load[1] -= 1
  load[2] += 4 * mean
  load[3:7] -= mean
  assert load.sum() == mean * E < 2**31 < E * load.max()
  want = -np.sign(load - mean)
  np.testing.assert_array_equal(update('loss_free_bias(rate=1.0)', load), want)
  spec = "loss_free_bias(rate=1.0, update_by='proportional')"
  np.testing.assert_allclose(update(spec, load)[2:7], [-4, 1, 1, 1, 1], 1e-6)


@pytest.mark.parametrize(
  ('spec', 'message'),
  [
    ('device_loss(devices=4)', 'devices=4 does not divide num_experts=6; '),
    ('communication_loss(devices=0, limit=0)', 'limit=0; valid: 1 to device'),
    ('communication_loss(devices=4)', 'devices=4 does not divide num_exper'),
    ('communication_loss(devices=3, limit=4)', 'limit=4; valid: 1 to devic'),
    ('top1_loss(temperature=0.0)', 'temperature=0.0 must be positive'),
    ("loss_free_bias(update_by='size')", "update_by='size'; valid: sign, pr"),
    ("entropy_loss(scope='batch')", "scope='batch'; valid: global, group"),
    ('loss_free_bias(rate=-0.1)', 'rate=-0.1 must be 0 or above'),
  ],
)
def test_rules_refuse(spec, message):
  with pytest.raises(ValueError, match=message):
    loss(
      registry.build('balancing', spec), routing(np.zeros((G, T, E)), even())
    )


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


@pytest.mark.parametrize(
  'spec',
  [
    'sequence_loss()',
    'device_loss(devices=2)',
    'communication_loss(devices=2, limit=1)',
    'entropy_loss()',
    'mutual_information()',
    'top1_loss()',
  ],
)
def test_rules_say_what_they_need(spec):
  rule = registry.build('balancing', spec)
  r = routing(np.zeros((G, T, E)), even())
  sums = base.Sums(r.replace(logits_TE=None, probs_TE=None), np.ones((G, T)), 1)
  name = spec.partition('(')[0]
  with pytest.raises(ValueError, match=f'{name} needs a router with'):
    rule.stats(sums)
