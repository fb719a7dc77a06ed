"""Every router, and every rule with a state, through 30 training steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.models import factory
from moe_jax.parallel import mesh as mesh_lib
from moe_jax.problems import base as problems
from moe_jax.training import (
  session as session_lib,
  state as state_lib,
  step as step_lib,
)
from tests import methods, tiny

E, B, L, STEPS = 4, 8, 12, 30
FEW = ('loss_free_bias()',)  # of routers, the canary trains one


def config(**fields):
  return tiny.config(
    **{
      'model.num_layers': 4,
      'moe.num_experts': E,
      'moe.group_size': 6,
      'moe.capacity_factor': 2.0,
      'moe.allow_noncausal': True,
      'moe.balance': (),
      'data.seq_len': L,
      'train.batch_size': B,
      'train.z_loss': 0.0,
      'train.optimizer': 'adamw(weight_decay=0.0)',
      'train.schedule': 'constant(value=0.01)',
    }
    | fields
  )


def train(c):
  """Losses, states before and after the first step and at the end."""
  mesh = mesh_lib.make(mesh_lib.shape(c.mesh, 8, E))
  model = factory.make(c, 40, mesh)
  problem = problems.of(c)
  dummy = session_lib.dummy(c, problem, mesh)
  lay = state_lib.layout(model, dummy)
  tx, _ = session_lib.make_optimizer(c, lay.batch_dims())
  shardings = jax.tree.map(
    lambda v: v.sharding, state_lib.abstract(tx, lay, mesh)
  )
  state = state_lib.init(model, tx, dummy, 0, shardings)
  step = jax.jit(
    step_lib.make_train_step(model, tx, problem=problem, seed=0),
    out_shardings=(shardings, None),
  )
  tokens = jax.random.randint(jax.random.key(1), (B, L + 1), 0, 40)
  place = jnp.broadcast_to(jnp.arange(L), (B, L))
  batch = {
    'inputs': tokens[:, :-1],
    'targets': tokens[:, 1:],
    'positions': place,
    'segments': jnp.ones((B, L), jnp.int32),
  }
  losses, states = [], [jax.device_get(state)]
  for _ in range(STEPS):
    state, metrics = step(state, batch)
    losses.append(float(metrics['loss']))
    if len(states) == 1:
      states.append(jax.device_get(state))
  assert step._cache_size() == 1
  return losses, [*states, jax.device_get(state)]


def check(c):
  losses, (first, second, last) = train(c)
  assert np.isfinite(losses).all() and losses[-1] < losses[0] - 0.3
  for path, before in jax.tree_util.tree_leaves_with_path(first.params):
    after = last.params
    for key in path:
      after = after[key.key]
    assert (before != after).any(), path
  return first.balance, second.balance, last.balance


def marked(row):
  marks = () if row.spec in FEW else pytest.mark.slow
  return pytest.param(row, id=row.spec, marks=marks)


def fields(row):
  if row.slots:
    return {'moe.dispatch': 'slots()', 'moe.capacity_factor': 0.0}
  out = {'moe.experts': row.experts}
  if row.local:
    out['moe.local_experts'] = ('zero()', 'copy()')
    out |= {'model.num_layers': 2, 'moe.layers': 'all'}
  if row.experts == 'mlp(d_ff=1)':
    out['moe.dispatch'] = 'lookup()'
  return out


@pytest.mark.parametrize(
  'row',
  [
    marked(r)
    for r in methods.rows('routers', slots=True)
    # Its batches bring experts; those that initialise a model do not.
    if not r.spec.startswith(('replay', 'forced'))
  ],
)
def test_router_trains(row):
  """The loss falls, every parameter moves, nothing compiles twice."""
  check(config(**{'moe.router': row.spec} | fields(row)))


@pytest.mark.slow
def test_shared_experts_train():
  """Two pools of four layers; candidates let in on the way."""
  check(
    config(
      **{
        'moe.layers': 'all',
        'moe.share_experts': 2,
        'moe.router': 'rexmoe(k=1, start=5, end=15)',
      }
    )
  )


@pytest.mark.parametrize(
  'row', [marked(r) for r in methods.rows('balancing') if r.state]
)
def test_state_follows_the_steps(row):
  """A state changes at every step, in every layer, and stays finite."""
  router = 'relu()' if row.spec.startswith('relu') else 'top_k(k=2)'
  layers = {'model.num_layers': 2, 'moe.layers': 'all'}
  rules = {'moe.router': router, 'moe.balance': (row.spec,)}
  states = check(config(**layers | rules))
  leaves = [jax.tree.leaves(s) for s in states]
  for a, b, c in zip(*leaves):
    # By layer, then by expert where the rule has a state for each.
    assert a.shape[0] == 2 and a.size in (2, 2 * E) and np.isfinite(c).all()
    a, b, c = (x.reshape(2, -1) for x in (a, b, c))
    assert (a != b).any(axis=-1).all() and (b != c).any(axis=-1).all()
