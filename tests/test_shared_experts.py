"""Adjacent MoE layers with one set of experts, each with its own router."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.models import factory, stack
from moe_jax.parallel import mesh as mesh_lib
from moe_jax.training import plans, tuning
from tests import tiny

B, L, V, E, D, F = 8, 16, 32, 4, 16, 32
SHARED = {
  'model.num_layers': 4,
  'moe.layers': 'all',
  'moe.router': 'top_k(k=2)',
  'moe.capacity_factor': 0.0,
  'moe.eval_capacity_factor': 0.0,
  'moe.share_experts': 2,
}


def batch():
  inputs = np.random.default_rng(0).integers(3, V, (B, L)).astype(np.int32)
  place = np.tile(np.arange(L, dtype=np.int32), (B, 1))
  return {
    'inputs': inputs,
    'positions': place,
    'segments': np.ones((B, L), np.int32),
  }


def build(mesh=None, **overrides):
  config = tiny.config(**SHARED | overrides)
  return config, factory.make(config, V, mesh)


@functools.cache
def params(**overrides):
  config, model = build(**overrides)
  b = factory.dummy_batch(config, B, L)
  init = jax.jit(lambda key: nn.unbox(model.init(key, b, train=False)))
  return jax.device_get(init(jax.random.key(0)))['params']


@functools.cache
def shared():
  return run(build()[1], params())


def run(model, p):
  """Logits, gradients of all parameters, and the aux."""

  def loss(p):
    logits, aux = model.apply({'params': p}, batch(), train=False)
    weight = jnp.cos(jnp.arange(logits.size)).reshape(logits.shape)
    return (logits * weight).sum(), (logits, aux)

  f = jax.jit(jax.grad(loss, has_aux=True))
  gradients, (logits, aux) = jax.device_get(f(p))
  return logits, gradients, aux


def close(a, b):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), a, b
  )


def copied(p):
  """The parameters of the unshared model whose experts are copies."""
  p = jax.tree.map(lambda v: v, p)
  period = p['decoder']['period']
  # Layers 0 to 3 were pairs of blocks, twice; now one block, four times.
  pool = period.pop('pool_0')['experts']
  pairs = period.pop('block_0'), period.pop('block_1')
  merge = lambda a, b: np.stack([a, b], 1).reshape(-1, *a.shape[1:])
  block = jax.tree.map(merge, *pairs)
  block['moe']['experts'] = jax.tree.map(merge, pool, pool)
  period['block_0'] = block
  return p


def test_a_group_has_one_pool():
  period = params()['decoder']['period']
  for block in ('block_0', 'block_1'):
    assert set(period[block]['moe']) == {'router'}
    assert period[block]['moe']['router']['kernel'].shape == (2, D, E)
  assert period['pool_0']['experts']['wi'].shape == (2, E, D, F)


def test_equals_copies_and_gradients_are_their_sum():
  p, (_, model) = params(), build()
  logits, gradients, aux = shared()
  layers = stack.aux_by_layer(aux['decoder'], model.stacks['decoder'].places)
  assert [i for i, _ in layers] == [0, 1, 2, 3]
  _, apart = build(**{'moe.share_experts': 1})
  want, by_layer, _ = run(apart, copied(p))
  close(logits, want)
  got = gradients['decoder']['period']['pool_0']['experts']
  sums = jax.tree.map(
    lambda g: g.reshape(2, 2, *g.shape[1:]).sum(1),
    by_layer['decoder']['period']['block_0']['moe']['experts'],
  )
  assert all(np.abs(g).max() > 1e-3 for g in jax.tree.leaves(sums))
  close(got, sums)


@pytest.mark.slow
@pytest.mark.parametrize('scan', [False, True])
def test_scan_remat_and_meshes_agree(scan):
  """The same parameters, unrolled, over experts, fsdp and model."""
  mesh = mesh_lib.make(mesh_lib.exact(expert=2, fsdp=2, model=2))
  options = {'model.scan': scan, 'model.remat': 'full'}
  close(run(build(mesh, **options)[1], params())[:2], shared()[:2])


def test_outside_of_a_period():
  """A group of three layers, apart from each other, that do not repeat."""
  config, model = build(
    **{
      'model.num_layers': 5,
      'moe.layers': '0,1,4',
      'moe.share_experts': 3,
    }
  )
  b = factory.dummy_batch(config, B, L)
  init = lambda: model.init(jax.random.key(0), b, train=False)
  found = nn.unbox(jax.eval_shape(init))['params']['decoder']
  assert [name for name in found if 'pool' in name] == ['prefix_pool_0']
  sparse = [k for k, v in found.items() if 'moe' in v]
  assert sparse == ['prefix_0', 'prefix_1', 'prefix_4']
  assert all(set(found[k]['moe']) == {'router'} for k in sparse)


def test_periods_hold_whole_groups():
  """Dense layers, those with experts of their own, and those that take them."""

  def split(layers, share):
    fields = {'model.num_layers': 8, 'moe.layers': layers}
    made = build(**fields, **{'moe.share_experts': share})[1].stack_config
    letter = lambda x: 'd' if x.moe is None else 'ot'[x.takes_experts]
    parts = (made.split.prefix, made.split.period, made.split.suffix)
    text = '|'.join(''.join(map(letter, part)) for part in parts)
    return text, made.split.repeats

  assert split('all', 4) == ('|ottt|', 2)
  assert split('all', 2) == ('|ot|', 4)
  assert split('every_2', 2) == ('|dodt|', 2)
  # 'to' twice would repeat as often, and cut two groups.
  assert split('0,2,3,4,5,6', 2) == ('odt|ot|d', 2)
  # Neither may the dense layers between a group's be a period.
  assert split('0,7', 2) == ('oddddddt||', 0)
  assert split('0,1', 2) == ('ot|d|', 6)


@pytest.mark.parametrize('share', [0, 3])
def test_groups_come_out_even(share):
  with pytest.raises(ValueError, match=f'share_experts={share} must be at le'):
    build(**{'moe.share_experts': share})


def test_counts():
  """Half the experts; as many FLOPs; a token meets at most all of them."""
  found = {}
  for share in (1, 2, 4):
    config = tiny.config(**SHARED | {'moe.share_experts': share})
    found[share] = plans.describe(config)
    experts = found[share]['parts']['experts']
    pool = 2 * E * D * F
    assert experts['total'] == pool * 4 / share
    # K = 2 of 4 experts in each of four layers.
    assert experts['active'] == (4 if share == 4 else 8) * 2 * D * F
  flops = {f['flops_per_sequence_forward'] for f in found.values()}
  assert len(flops) == 1


def test_a_pool_is_tuned_with_its_moe_layers():
  """Every expert parameter is in 'moe', none in 'non_moe'."""
  p = params()
  for choice in ('moe', 'non_moe'):
    mask = tuning.trained(p, choice)
    found = {
      jax.tree_util.keystr(path): m
      for path, m in jax.tree_util.tree_leaves_with_path(mask)
    }
    pools = [m for path, m in found.items() if 'pool' in path]
    assert pools and all(m == (choice == 'moe') for m in pools), choice
