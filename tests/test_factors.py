"""Two capacity factors of which only one drops: in training, in evaluation."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

from moe_jax import types
from moe_jax.layers import linen, moe
from moe_jax.models import factory
from moe_jax.parallel import mesh as mesh_lib
from moe_jax.problems import base as problems
from moe_jax.training import checks, plans, probes, session as session_lib
from tests import saved, tiny
from tests.routers import test_hash

B, L, T, E, K = 2, 16, 8, 4, 2
RNG = np.random.default_rng(0)
IDS = RNG.integers(0, 9, (B, L)).astype(np.int32)
MASK = np.arange(L) < np.array([[L], [L - 5]])
TIGHT, AMPLE = 0.5, 3.0


def causes(factor):
  """Assignments by cause, by a loop: groups of T, first choices first."""
  found = np.zeros(len(types.CAUSES), int)
  C = min(T, int(np.ceil(factor * T * K / E))) if factor else T
  for ids_T, mask_T in zip(IDS.reshape(-1, T), MASK.reshape(-1, T)):
    seen, x = {'ids_T': ids_T}, np.zeros((T, 1))
    chosen = test_hash.hash_(x, {}, np.zeros(E), seen, k=K).expert
    load = np.bincount(chosen[mask_T].reshape(-1), minlength=E)
    found[types.KEPT] += np.minimum(load, C).sum()
    found[types.CAPACITY] += np.maximum(load - C, 0).sum()
    found[types.PADDING] += K * (~mask_T).sum()
  return found


@functools.cache
def counted(train_factor, eval_factor):
  """The layer's counts in training and in evaluation."""
  layer = linen.MoE(
    moe.MoE(
      num_experts=E,
      router=f'hash(k={K})',
      experts='mlp(d_ff=2)',
      dispatch='scatter()',
      group_size=T,
      capacity_factor=train_factor,
      eval_capacity_factor=eval_factor,
    )
  )
  x = RNG.standard_normal((B, L, 3)).astype(np.float32)
  tokens = types.Tokens(mask=MASK, ids=IDS)

  @jax.jit
  def run(key):
    v = nn.unbox(layer.init(key, x, tokens, train=False))
    both = (layer.apply(v, x, tokens, train=t)[2] for t in (True, False))
    return [aux.cause for aux in both]

  return run(jax.random.key(0))


@pytest.mark.parametrize('train', [TIGHT, AMPLE, None])
def test_each_mode_drops_by_its_own_factor(train):
  evaluation = {TIGHT: None, AMPLE: TIGHT, None: TIGHT}[train]
  found = counted(train, evaluation)
  for got, factor in zip(found, (train, evaluation)):
    want = causes(factor)
    np.testing.assert_array_equal(got, want)
    assert (want[types.CAPACITY] > 0) == (factor == TIGHT)
    assert want[types.PADDING] == 5 * K


def two_stacks(**fields):
  return tiny.config(
    **{
      'mesh': 'auto()',
      'model.kind': 'encoder_decoder',
      'model.positions': 'relative',
      'model.num_layers': 1,
      'model.d_model': 4,
      'model.num_heads': 1,
      'model.d_head': 4,
      'model.d_ff': 4,
      'moe.num_experts': 1,
      'moe.d_ff': 4,
      'moe.layers': 'none',
      'moe.balance': (),
      'data.objective': 'span_corruption()',
    }
    | fields
  )


def with_decoder(config, **fields):
  with config.unlocked():
    config.moe.decoder.update(fields)
  return config


def test_a_factor_of_evaluation_is_that_of_all_stacks():
  """The decoder's own, too; training's stay."""
  config = two_stacks(**{'moe.layers': 'all'})
  with_decoder(config, eval_capacity_factor=3.0, capacity_factor=4.0)
  changed = checks.with_eval_factor(config, 0.25)
  model = factory.make(changed, 384)
  for name, train in (('encoder', 1.0), ('decoder', 4.0)):
    layer = model.stacks[name].moe
    assert (layer.capacity_factor, layer.eval_capacity_factor) == (train, 0.25)
  assert config.moe.decoder.eval_capacity_factor == 3.0
  with pytest.raises(
    ValueError, match=r'capacity_factor=0\.5 is for MoE layer'
  ):
    checks.with_eval_factor(two_stacks(), 0.5)


def test_drops_by_position_of_a_decoder_with_groups_of_its_own():
  """One expert has seats for half of a group: its first six of eleven."""
  config = with_decoder(
    two_stacks(**{'moe.group_size': 16, 'data.seq_len': 96}),
    layers='all',
    group_size=11,
    capacity_factor=0.5,
  )
  problem = problems.of(config)
  length = problem.lengths['decoder']
  assert length == 2 * 11
  mesh = mesh_lib.single()
  model = factory.make(config, 384, mesh)
  ones = np.ones((1, length), np.int32)
  batch = {'inputs': ones, 'positions': ones, 'segments': ones}
  batch |= {f'encoder_{k}': np.ones((1, 96), np.int32) for k in batch}
  params = jax.device_get(saved.state(config).params)

  class Data:
    def validation(self, **rest):
      return [batch]

  session = session_lib.Session(
    config,
    problem,
    mesh,
    model,
    tx=None,
    schedule=None,
    layout=None,
    batch_sharding=jax.sharding.NamedSharding(
      mesh, jax.sharding.PartitionSpec()
    ),
    data=Data(),
  )
  probe = probes.build(f'drop_by_position(bins={length})')
  found = probe(session, params, {})
  want = {f'bin_{i}': float(i % 11 >= 6) for i in range(length)}
  assert found == pytest.approx(want | {'slope': 1.0})


def test_describe_counts_the_devices_of_the_config():
  """Eight are simulated: two on data, four on expert."""
  config = tiny.config()
  found = plans.describe(config)
  assert found['devices'] == 8
  assert found['mesh'] == mesh_lib.exact(data=2, expert=4)
  (w,) = (p for p in found['parameters'] if p['path'].endswith('experts/wi'))
  assert w['bytes_per_device'] == 4 * np.prod(w['shape']) / 4
  config = tiny.config(**{'mesh': 'exact(data=4)', 'cpu_devices': 8})
  assert plans.describe(config)['devices'] == 4
  assert plans.describe(config, 'exact()')['devices'] == 1
