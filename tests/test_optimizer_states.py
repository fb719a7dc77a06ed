"""Optimizer states lie on a mesh as their parameters do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from moe_jax.training import optimizers
from tests import test_optimizers

SPECS = {
  'experts': P(None, 'expert', 'fsdp', 'model'),
  'bias': P(None, 'expert', 'model'),
  'gain': P(None, 'expert'),
  'kernel': P('fsdp', 'model'),
  'heads': P(None, 'fsdp'),
  'norm': P(),
}


def specs_of(spec, clip=1.0):
  tx, _ = optimizers.make(
    spec,
    'constant(value=0.1)',
    steps=9,
    clip=clip,
    batch_dims=test_optimizers.BATCH,
  )
  params = {
    k: jax.ShapeDtypeStruct(s, 'float32')
    for k, s in test_optimizers.SHAPES.items()
  }
  state = jax.eval_shape(tx.init, params)
  return optimizers.state_specs(
    state, params, SPECS, test_optimizers.BATCH
  ), state


def by_path(tree):
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): spec
    for path, spec in jax.tree_util.tree_leaves_with_path(
      tree, is_leaf=lambda x: isinstance(x, P)
    )
  }


def test_state_specs_follow_the_parameters():
  specs, state = specs_of('adamw')
  found = by_path(specs)
  assert len(found) == len(jax.tree.leaves(state))
  for k, spec in SPECS.items():
    assert [v for p, v in found.items() if p.endswith(f'mu/{k}')] == [spec]
    assert [v for p, v in found.items() if p.endswith(f'nu/{k}')] == [spec]
  assert all(v == P() for p, v in found.items() if p.endswith('count'))


def test_state_specs_of_factored_moments():
  found = by_path(specs_of('adafactor(min_dim=6, momentum=0.9)', 0.0)[0])
  for part in ('v_row', 'v_col', 'v'):
    assert found[f'0/{part}/experts'] == P(None, 'expert')
    assert found[f'0/{part}/heads'] == P(None)
    assert found[f'0/{part}/norm'] == P()
  assert found['0/v/kernel'] == SPECS['kernel']  # 5 < min_dim: not factored.
  assert found['0/v/bias'] == SPECS['bias']
  assert found['0/v/gain'] == SPECS['gain']
  assert found['0/v_row/bias'] == P(None, 'expert')
  assert found['0/v_row/kernel'] == P()
  assert found['2/ema/experts'] == SPECS['experts']
  assert found['0/count'] == P()


def test_state_specs_take_the_longest_path_and_refuse_strays():
  f32 = jnp.float32
  shape = jax.ShapeDtypeStruct((4, 4), f32)
  params = {'w': shape, 'a': {'w': shape}}
  specs = {'w': P('data'), 'a': {'w': P(None, 'data')}}
  batch = {'w': 0, 'a': {'w': 0}}
  state = {'mu': params, 'n': jax.ShapeDtypeStruct((), jnp.int32)}
  got = optimizers.state_specs(state, params, specs, batch)
  assert got == {'mu': specs, 'n': P()}
  state['stray'] = jax.ShapeDtypeStruct((3,), f32)
  with pytest.raises(ValueError, match=r"\['stray'\] \(3,\) is no scalar"):
    optimizers.state_specs(state, params, specs, batch)
  state = {'mu': {'w': jax.ShapeDtypeStruct((2, 9), f32)}}
  with pytest.raises(ValueError, match=r"\['mu'\]\['w'\] \(2, 9\)"):
    optimizers.state_specs(
      state,
      {'w': jax.ShapeDtypeStruct((3, 4, 5), f32)},
      {'w': P('data')},
      {'w': 1},
    )


def test_sharded_update_equals_the_plain_one():
  """Placed by `state_specs` on 8 devices, experts over one mesh axis."""
  mesh = jax.make_mesh((4, 2), ('expert', 'model'), (AxisType.Auto,) * 2)
  shape, spec = (2, 4, 8, 6), P(None, 'expert', None, 'model')
  rng = np.random.default_rng(0)
  w, *grads = (rng.normal(size=(4, *shape))).astype(np.float32)
  tx, _ = optimizers.make(
    'adafactor(min_dim=4, momentum=0.5)',
    'constant(value=0.1)',
    steps=9,
    clip=1.0,
    batch_dims={'w': 2},
  )
  want, _ = test_optimizers.run(
    tx, [{'w': g} for g in grads], {'w': jnp.asarray(w)}
  )
  params = {'w': jax.device_put(w, NamedSharding(mesh, spec))}
  shapes = jax.eval_shape(tx.init, params)
  specs = optimizers.state_specs(shapes, params, {'w': spec}, {'w': 2})
  shardings = jax.tree.map(lambda s: NamedSharding(mesh, s), specs)
  state = jax.jit(tx.init, out_shardings=shardings)(params)
  row = [x for x in jax.tree.leaves(state) if x.shape == (2, 4, 6)]
  assert [x.addressable_shards[0].data.shape for x in row] == [(2, 1, 6)]

  @jax.jit
  def step(grad, state, params):
    updates, state = tx.update(grad, state, params)
    return optax.apply_updates(params, updates), state

  for g in grads:
    g = {'w': jax.device_put(g, NamedSharding(mesh, spec))}
    params, state = step(g, state, params)
  np.testing.assert_allclose(params['w'], want['w'], rtol=1e-5, atol=1e-7)
