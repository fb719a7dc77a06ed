"""The layer alone, in Linen and in NNX: the same numbers, step by step."""

import dataclasses
import pathlib
import re

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx, traverse_util

from moe_jax.layers import linen, moe, nnx as nnx_layers, streams
from moe_jax.models import factory
from moe_jax.parallel import mesh as mesh_lib, rules
from tests import tiny

B, L, D, E, STEPS = 8, 8, 6, 4, 20
X = np.random.default_rng(0).normal(size=(B, L, D)).astype(np.float32)


def layer(mesh=None):
  return moe.MoE(
    num_experts=E,
    router='sigmoid_top_k(k=2)',
    experts="mlp(d_ff=8, activation='relu')",
    dispatch='scatter()',
    balance=('switch_loss(weight=0.1)', 'loss_free_bias(rate=0.01)'),
    group_size=L,
    dense_branch='gated',
    dense='glu(d_ff=3)',
    local_experts='constant()',
    mesh=mesh,
  )


def by_hand(layer, call):
  """A step for what takes arrays: `call(params, state)` -> y, aux."""

  def step(carry, _):
    params, state = carry

    def loss(params):
      y, aux = call(params, state)
      return (y**2).mean() + aux.loss, aux.stats

    (value, stats), g = jax.value_and_grad(loss, has_aux=True)(params)
    params = jax.tree.map(lambda p, g: p - 0.3 * g, params, g)
    return (params, layer.update(state, stats)), value

  return step


def pure(layer, params):
  step = by_hand(layer, lambda p, s: layer(p, s, X, train=True)[::2])
  (params, state), losses = jax.lax.scan(
    step, (params, layer.init_state()), length=STEPS
  )
  return losses, params, state


def in_linen(layer, params):
  module = linen.MoE(layer)

  def call(params, state):
    variables = {'params': params, 'balance': {'state': state}}
    return module.apply(variables, X, train=True)[::2]

  (params, state), losses = jax.lax.scan(
    by_hand(layer, call), (params, layer.init_state()), length=STEPS
  )
  return losses, params, state


def in_nnx(layer, params):
  module = nnx_layers.MoE(layer, D, rngs=nnx.Rngs(0))
  of = lambda kind: nnx.to_pure_dict(nnx.state(module, kind))
  shapes = lambda tree: jax.tree.map(lambda v: v.shape, tree)
  assert shapes(of(nnx.Param)) == shapes(params)
  nnx.update(module, params)
  graph, first = nnx.split(module)

  def step(variables, _):
    m = nnx.merge(graph, variables)

    def loss(m):
      y, _, aux = m(X, train=True)
      return (y**2).mean() + aux.loss, aux.stats

    (value, stats), g = nnx.value_and_grad(loss, has_aux=True)(m)
    params = nnx.state(m, nnx.Param)
    nnx.update(m, jax.tree.map(lambda p, g: p - 0.3 * g, params, g))
    m.update(stats)
    return nnx.state(m), value

  last, losses = jax.lax.scan(step, first, length=STEPS)
  nnx.update(module, last)
  return losses, of(nnx.Param), of(nnx_layers.Balance)['state']


@pytest.mark.parametrize('mesh', ['exact()', 'exact(data=2, expert=4)'])
def test_three_faces_learn_alike(mesh):
  """From the same parameters, on one device and on eight."""
  one = layer(mesh)
  params = jax.jit(lambda key: layer().init(key, D))(jax.random.key(0))
  faces = pure, in_linen, in_nnx
  run = jax.jit(lambda p: [face(one, p) for face in faces])
  (losses, *rest), *others = jax.device_get(run(params))
  assert losses[-1] < 0.8 * losses[0]
  np.testing.assert_allclose(losses, ONCE.setdefault(0, losses), rtol=1e-5)
  bias_E = rest[1]['loss_free_bias']
  assert bias_E.shape == (E + 1,) and 0 < np.abs(bias_E).max() < 0.01 * STEPS
  for other in others:
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
      (losses, *rest),
      other,
    )


ONCE: dict[int, np.ndarray] = {}  # losses on the first mesh


def test_parameters_and_axes_are_alike():
  """Names, shapes and logical axes; shards of what NNX holds."""
  one = layer('exact(data=2, expert=4)')
  boxed = jax.eval_shape(
    lambda: linen.MoE(one).init(jax.random.key(0), X, train=False)
  )
  shapes = jax.eval_shape(lambda: one.init(jax.random.key(0), D))
  assert nn.unbox(boxed['params']) == shapes
  names = jax.tree.map(
    lambda v: v.names, boxed['params'], is_leaf=lambda v: hasattr(v, 'names')
  )
  assert names == one.axes(D)
  assert rules.specs(names, shapes, one.mesh.shape)['experts']['wi'] == (
    jax.sharding.PartitionSpec('expert', None, None)
  )
  make = nnx.jit(lambda: nnx_layers.MoE(one, D, rngs=nnx.Rngs(0)))
  wi = make().experts['wi'][...]
  assert wi.sharding.shard_shape(wi.shape) == (1, D, 8)


# Of a layer in Linen before it was a shell: runs go on with their numbers.
FIRST = {
  ('router', 'kernel'): 0.010665757581591606,
  ('experts', 'wi'): -0.491769403219223,
  ('local_experts', '0', 'kernel'): 0.054868604987859726,
  ('dense', 'ffn', 'wi_up'): -0.11946527659893036,
  ('dense_gate',): 0.08240271359682083,
}
TOKEN = [-0.02628, 0.22435, -0.12072, 0.19211, -0.06032, -0.03402]


def test_keys():
  """Linen draws as it always did; one key is as good as one for each stream."""
  one = dataclasses.replace(
    layer(),
    router='switch(jitter=0.3)',
    experts='mlp(d_ff=8, dropout=0.5)',
    dense='glu(d_ff=3, dropout=0.5)',
    balance='loss_free_bias()',
  )
  module, key = linen.MoE(one), jax.random.key(0)
  rngs = {'router': jax.random.key(1), 'dropout': jax.random.key(2)}

  @jax.jit
  def run():
    v = nn.unbox(module.init(key, X, train=False))
    call = lambda key: one(
      *(v['params'], v['balance']['state'], X), key=key, train=True
    )[0]
    each = streams.split(key)
    changed = [each | {k: jax.random.key(7)} for k in each]
    ys = [call(k) for k in (key, each, *changed)]
    return v['params'], module.apply(v, X, train=True, rngs=rngs)[0], ys

  params, y, (by_one, by_each, *others) = jax.device_get(run())
  flat = traverse_util.flatten_dict(params)
  for name, value in FIRST.items():
    np.testing.assert_allclose(flat[name].flat[0], value, rtol=1e-5)
  np.testing.assert_allclose(y[0, 0], TOKEN, atol=1e-5)
  np.testing.assert_array_equal(by_one, by_each)
  assert len(others) == 3 and all((y != by_one).any() for y in others)
  with pytest.raises(ValueError, match='has no key for it'):
    jax.eval_shape(lambda p: one(p, one.init_state(), X, train=True), params)


def test_a_model_in_nnx():
  """`ToNNX` over a decoder, without rules or a mesh in context."""
  config = tiny.config(
    **{'moe.layers': 'all', 'moe.balance': ('loss_free_bias()',)}
  )
  model = factory.make(config, 16, mesh_lib.make('exact(fsdp=2, expert=4)'))
  batch = factory.dummy_batch(config, 8, 16)

  @nnx.jit
  def run(batch):
    m = nnx.bridge.ToNNX(model, rngs=nnx.Rngs(0)).lazy_init(batch, train=False)
    loss = lambda m: (m(batch, train=True)[0] ** 2).mean()
    return m, *nnx.value_and_grad(loss)(m)

  m, value, gradient = run(batch)
  assert value > 0
  assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradient))
  local = lambda v: v[...].sharding.shard_shape(v.shape)
  block = m.decoder['period']['block_0']
  assert local(block['moe']['experts']['wi']) == (2, 1, 8, 32)
  assert local(block['attention']['query']) == (2, 8, 2, 8)
  assert local(m.embedding['table']) == (16, 8)


@pytest.mark.slow
def test_the_front_page_runs():
  """As it stands there: losses fall and biases move, on eight devices."""
  text = (pathlib.Path(__file__).parents[1] / 'README.md').read_text()
  start = text.index('## The layer in your own model')
  section = text[start : text.index('\n## ', start)]
  names = {}
  exec('\n'.join(re.findall(r'```python\n(.*?)```', section, re.DOTALL)), names)
  layer, x = names['layer'], names['x']
  loss = jax.jit(
    lambda p, s: names['score'](*layer(p, s, x, train=False)[::2])[0]
  )
  params, state = names['params'], names['state']
  first = loss(names['variables']['params'], layer.init_state())
  before = loss(params, state)
  for i in range(3):
    params, state = names['step'](params, state, jax.random.key(i))
    names['step_nnx'](names['in_nnx'])
  assert loss(params, state) < before - 0.001
  of = lambda kind: nnx.to_pure_dict(nnx.state(names['in_nnx'], kind))
  bias = of(nnx_layers.Balance)['state']
  assert loss(of(nnx.Param), bias) < first
  for s, steps in ((state, 4), (bias, 4), (names['new'], 1)):
    assert 0 < abs(s['loss_free_bias']).max() <= 0.001 * steps + 1e-6
