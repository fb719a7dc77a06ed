"""Micro-batches give what the whole batch gives, for every balancing rule."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moe_jax import registry, types
from moe_jax.balancing import base as balancing
from moe_jax.models import factory
from moe_jax.parallel import mesh as mesh_lib
from moe_jax.problems import base as problems
from moe_jax.training import (
  accumulation,
  session as session_lib,
  state as state_lib,
  step as step_lib,
)
from tests import methods, tiny

B, L, E = 8, 12, 4
# Rows 0, 1, 4 and 5 are the first of two micro-batches on two devices: empty.
REAL = np.array([0, 0, 12, 5, 0, 0, 9, 12])
UNEVEN = np.array([12, 3, 12, 5, 1, 7, 9, 12])


def batch(real=UNEVEN):
  rng = np.random.default_rng(0)
  ids = rng.integers(1, 30, (B, L + 1))
  place = np.tile(np.arange(L), (B, 1))
  # Two sequences a row, the second from token 4 on.
  segments = np.where(place < real[:, None], 1 + (place >= 4), 0)
  return {
    'inputs': ids[:, :-1],
    'targets': ids[:, 1:],
    'positions': place % 4,
    'segments': segments,
  }


def step(parts, fields, data):
  """Metrics, gradient and balancing state of a step in so many parts."""
  config = tiny.config(
    **{
      'model.d_model': 8,
      'model.num_heads': 1,
      'moe.layers': 'all',
      'moe.group_size': 6,
      'moe.capacity_factor': 1.0,
      'moe.allow_noncausal': True,
      'data.seq_len': L,
      'train.batch_size': B,
      'train.z_loss': 0.1,
    }
    | fields
  )
  mesh = mesh_lib.make(mesh_lib.exact(expert=2), jax.devices()[:2])
  model, tx = factory.make(config, 30, mesh), optax.sgd(1.0)
  problem = problems.of(config)
  lay = state_lib.layout(model, session_lib.dummy(config, problem, mesh))
  rng = np.random.default_rng(1)
  draw = lambda v: jnp.asarray(rng.normal(size=v.shape), v.dtype)
  state = state_lib.TrainState(
    jnp.int32(0),
    jax.tree.map(draw, lay.params),
    tx.init(lay.params),
    jax.tree.map(lambda v: 0.1 * jnp.abs(draw(v)), lay.balance),
  )
  run = jax.jit(
    step_lib.make_train_step(
      model, tx, problem=problem, seed=0, accumulate=parts
    )
  )
  data = {k: jnp.asarray(v, jnp.int32) for k, v in data.items()}
  new, metrics = run(state, data)
  gradient = jax.tree.map(jnp.subtract, state.params, new.params)
  return jax.device_get((metrics, gradient, new.balance))


def check(fields, data, parts=2):
  one, many = step(1, fields, data), step(parts, fields, data)
  for name in ('load', 'cause', 'tokens'):
    np.testing.assert_array_equal(many[0][name], one[0][name])
  assert one[0]['cause'][:, 1].sum() > 0 or 'dselect' in fields['moe.router']
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    many[0],
    one[0],
  )
  for (path, got), want in zip(
    jax.tree_util.tree_leaves_with_path(many[1]), jax.tree.leaves(one[1])
  ):
    # To 1e-5 of the largest entry.
    bar = 1e-5 * np.abs(want).max()
    np.testing.assert_allclose(got, want, atol=bar, err_msg=str(path))
  jax.tree.map(np.testing.assert_array_equal, many[2], one[2])
  return one


# One rule a name, as many as go together; the weights make all count alike.
VMOE = (
  "switch_loss(scope='global', count='all', weight=1.0)",
  "importance_loss(scope='global', weight=1.0)",
  "load_loss(scope='global', weight=1.0)",
  'mutual_information(weight=1.0)',
  'top1_loss(weight=1.0)',
  'z_loss(weight=0.1)',
  "entropy_loss(scope='global', weight=1.0)",
  'sequence_loss(weight=1.0)',
  'device_loss(devices=2, weight=1.0)',
  'communication_loss(devices=2, limit=1, weight=1.0)',
  'null_loss(weight=1.0)',
  'heterogeneous_loss(weight=1.0)',
  'simbal(weight=1.0)',
  'loss_free_bias(rate=0.01)',
)
RELU = (
  'relu_loss(start=0.1)',
  "switch_loss(over_padding=True, scope='sequence', count='all', weight=1.0)",
)
SELECTOR = ('selector_loss(weight=1.0, reach=0.5)',)


def test_every_rule_is_here():
  """`bip` cannot be: it needs the scores of the whole batch at once."""
  named = {registry.parse(spec)[0] for spec in VMOE + RELU + SELECTOR}
  every = {registry.parse(row.spec)[0] for row in methods.rows('balancing')}
  assert named == every - {'bip'}


@pytest.mark.parametrize(
  'router, specs',
  [
    ('vmoe(k=2)', (*VMOE[:5], VMOE[6], "simbal(scope='global')", VMOE[13])),
    ('relu()', RELU[:1]),
    ('top_k(k=2)', RELU[1:] + VMOE[5:6] + VMOE[7:13]),
    ('dselect_k(k=2)', SELECTOR),
  ],
  ids=['vmoe', 'relu', 'by_segment', 'dselect_k'],
)
def test_losses_and_gradients_of_sums(router, specs):
  """Each rule on three uneven micro-batches, and on all of it at once."""
  G, T, D, parts = 6, 4, 3, 3
  router = registry.build('routers', router)
  rules = [registry.build('balancing', spec) for spec in specs]
  states = {k: v + 0.3 for k, v in balancing.init_states(rules, E).items()}
  rng = np.random.default_rng(2)
  real = np.array([4, 4, 0, 1, 2, 4])
  batch = {
    'x': jnp.asarray(rng.normal(size=(G, T, D)), jnp.float32),
    'mask': jnp.asarray(np.arange(T) < real[:, None]),
    'key': jax.random.split(jax.random.key(3), G),
  }
  params = jax.tree.map(lambda v: v + 0.5, router.init(jax.random.key(4), E, D))

  def forward(params, number, rows):
    del number
    bias_E = balancing.selection_bias(rules, states, E)
    one = lambda x_TD, mask_T, key: router(
      params, x_TD, types.Context(key, mask_T, bias_E, train=True)
    )
    r = jax.vmap(one)(rows['x'], rows['mask'], rows['key'])
    args = (r, rows['mask'], rows['x'].shape[0], (), states)
    return balancing.evaluate(rules, *args, router=params)[2]

  def losses(params, sums, weights=None):
    return balancing.losses(rules, sums, states, weights, params)

  whole = lambda *args: losses(*args)[0]

  def run(share, parts):
    cut = jax.tree.map(lambda v: v.reshape(parts, -1, *v.shape[1:]), batch)
    sums, grad = accumulation.gradient(forward, whole, share, params, cut)
    return losses(params, sums)[1], grad

  want, want_grad = jax.jit(lambda: run(None, 1))()
  got, grad = jax.jit(lambda: run(None, parts))()
  assert len(got) == len([r for r in rules if r.weight])
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  jax.tree.map(close, got, want)
  jax.tree.map(close, grad, want_grad)
  if not balancing.splits(rules):
    return
  # Losses that are no function of global sums add up by themselves.
  weights = balancing.total_weights(rules, batch['mask'])
  share = lambda *args: losses(*args, weights)[0]
  got, grad = jax.jit(lambda: run(share, parts))()
  jax.tree.map(close, got, want)
  jax.tree.map(close, grad, want_grad)


@pytest.mark.slow
def test_global_rules_noise_and_padding():
  """Products of means over the batch, under noise that follows the group."""
  fields = {
    'moe.router': 'vmoe(k=2)',
    'moe.seating': 'random_tokens()',
    'moe.balance': VMOE,
  }
  one = check(fields, batch())
  assert set(one[0]['balance']) == {
    registry.parse(spec)[0] for spec in VMOE[:-1]
  }


@pytest.mark.slow
def test_an_empty_micro_batch_weighs_nothing():
  """Losses by group and sequence, without a second forward pass."""
  fields = {
    'moe.router': 'top_k(k=2, jitter=0.1)',
    'moe.balance': (
      'switch_loss(weight=1.0)',
      'z_loss(weight=0.1)',
      'sequence_loss(weight=1.0)',
    ),
  }
  check(fields, batch(REAL))


@pytest.mark.slow
@pytest.mark.parametrize(
  'fields',
  [
    {'moe.router': 'relu()', 'moe.balance': RELU},
    {'moe.router': 'dselect_k()', 'moe.balance': SELECTOR},
    {
      'moe.router': 'top_k()',
      'moe.balance': ("switch_loss(scope='global', weight=1.0)",),
      'moe.route_padding': True,
    },
  ],
  ids=['relu', 'dselect_k', 'route_padding'],
)
def test_other_rules(fields):
  check(fields, batch(), parts=4)


def test_shares_need_no_second_pass():
  """Only a loss of 'global' sums runs the model forward twice."""
  calls = []

  def forward(p, number, rows):
    calls.append(number)
    return {'sum': (p * rows).sum(), 'square': (rows**2).sum()}

  rows_ = jnp.arange(6.0).reshape(3, 2)
  loss = lambda p, sums: p * sums['sum'] ** 2
  sums, grad = accumulation.gradient(
    forward, loss, None, jnp.float32(2.0), rows_
  )
  assert (
    sums == {'sum': 30.0, 'square': 55.0} and grad == 30**2 + 2 * 2 * 30 * 15
  )
  share = lambda p, sums: p * sums['sum']
  sums, grad = accumulation.gradient(
    forward, share, share, jnp.float32(2.0), rows_
  )
  assert sums == {'sum': 30.0, 'square': 55.0} and grad == 60


def test_a_micro_batch_is_adjacent_rows_of_every_device():
  mesh = mesh_lib.make(mesh_lib.exact(data=2), jax.devices()[:2])
  got = accumulation.micro_batches({'x': jnp.arange(16)[:, None]}, 2, mesh)
  want = [[0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]]
  np.testing.assert_array_equal(got['x'][..., 0], want)


def test_a_rule_that_solves_is_refused():
  fields = {'moe.balance': ('bip()',), 'train.batch_size': 16}
  config = tiny.config(**fields, **{'train.accumulate': 2})
  with pytest.raises(ValueError, match=r'accumulate: bip solves .* with it: 1'):
    session_lib.plan(config)


def test_groups_that_micro_batches_would_cut_otherwise_are_refused():
  """Of 64 tokens of a device 64, of the 32 of a micro-batch 32."""
  fields = {'moe.capacity_factor': 0.0, 'moe.group_size': 100}
  fields |= {'train.batch_size': 32, 'train.accumulate': 2}
  with pytest.raises(ValueError, match='size that divides 32 is the same'):
    session_lib.plan(tiny.config(**fields))
  fits = tiny.config(**fields | {'moe.group_size': 32})
  session_lib.plan(fits, splits=('train',))
