"""Experts that are taken out, and what it costs."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from moe_jax import registry, types
from moe_jax.analysis import importance, inside, removal
from moe_jax.errors import NotFiniteError, UserError
from moe_jax.layers import boxes
from moe_jax.models import factory
from moe_jax.parallel import mesh as mesh_lib, rules
from moe_jax.problems import losses
from tests import tiny

B, L, V, E, D = 4, 16, 32, 4, 3
FIELDS = {
  'moe.layers': 'all',
  'moe.router': 'sigmoid_top_k(k=2)',  # scores know nothing of one another
  'moe.balance': ('loss_free_bias()',),
  'moe.capacity_factor': 0.0,
  'moe.eval_capacity_factor': 0.0,
}
DOCUMENT = np.repeat(np.arange(D), [24, 24, 16]).reshape(B, L)
DOMAIN, SIZE = [0, 1, 1], [24.0, 24.0, 16.0]


def batch(seed=0):
  rng = np.random.default_rng(seed)
  ids = rng.integers(3, V, (B, L + 1)).astype(np.int32)
  return {
    'inputs': ids[:, :-1],
    'targets': ids[:, 1:],
    'segments': np.ones((B, L), np.int32),
    'positions': np.tile(np.arange(L, dtype=np.int32), (B, 1)),
    'document': DOCUMENT.astype(np.int32),
  }


def judge(out, batch):
  nll_BL = losses.token_nll(out, batch['targets'])
  return jnp.zeros(D).at[batch['document']].add(nll_BL)


@functools.cache
def model():
  config = tiny.config(**FIELDS)
  made = factory.make(config, V)
  b = factory.dummy_batch(config, B, L)
  init = jax.jit(lambda key: nn.unbox(made.init(key, b, train=False)))
  variables = jax.tree.map(np.array, init(jax.random.key(0)))
  # Experts that matter, and a bias that decides some choices.
  own = variables['params']['decoder']['period']['block_0']['moe']
  own['router']['kernel'] *= 5
  own['experts']['wo'] *= 5
  state = variables['balance']['decoder']['period']['block_0']['moe']['state']
  leaf = jax.tree.leaves(state)[0]
  leaf[...] = np.linspace(-0.1, 0.1, E, dtype=np.float32)
  return made, variables


@pytest.fixture(scope='module')
def measured():
  made, variables = model()
  programs, lines = [], []
  make = importance._program
  with pytest.MonkeyPatch.context() as patch:
    keep = lambda *args: programs.append(make(*args)) or programs[-1]
    patch.setattr(importance, '_program', keep)
    found = importance.measure(
      *(made, variables, judge, iter([batch(), batch(1)]), DOMAIN, SIZE),
      siblings=[np.array([1, 0, 3, 2]), np.array([1, 2, 3, 0])],
      shown=lines.append,
    )
  return found, programs[0], lines


def test_one_program_takes_out_all(measured):
  found, program, lines = measured
  assert program._cache_size() == 1
  assert found['layers'] == ['decoder/0', 'decoder/1']
  assert found['removed'].shape == (2, E, 3)
  assert np.isfinite(found['removed']).all()
  assert len(lines) == 2 * E
  assert lines[5].startswith('expert 1 of decoder/1: ')


@pytest.mark.slow
def test_on_a_mesh_the_losses_are_the_same(measured):
  found, *_ = measured
  config, mesh = tiny.config(**FIELDS), mesh_lib.make('auto(expert=4)')
  sharded = factory.make(config, V, mesh)
  shapes = jax.eval_shape(
    lambda: sharded.init(
      jax.random.key(0), factory.dummy_batch(config, 8, L), train=False
    )
  )
  params = jax.tree.map(
    lambda names, v: jax.device_put(
      v, NamedSharding(mesh, rules.spec(names, mesh.shape))
    ),
    boxes.logical_axes(shapes['params']),
    model()[1]['params'],
    is_leaf=lambda v: isinstance(v, tuple),
  )
  twice = lambda b: {k: np.concatenate([v, v]) for k, v in b.items()}
  programs, make = [], importance._program
  keep = lambda *args: programs.append(make(*args)) or programs[-1]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(importance, '_program', keep)
    got = importance.measure(
      *(sharded, {'params': params, 'balance': model()[1]['balance']}, judge),
      *([twice(batch()), twice(batch(1))], DOMAIN, 2 * np.array(SIZE)),
      siblings=[np.array([1, 0, 3, 2]), np.array([1, 2, 3, 0])],
    )
  assert programs[0]._cache_size() == 1
  for k in ('loss', 'removed', 'replaced'):
    np.testing.assert_allclose(got[k], found[k], rtol=1e-3, atol=1e-4)


def nats(program, variables, out=None):
  """Of both batches, by document, as `measure` gets them: no new program."""
  params = jax.device_put(variables['params'], jax.devices()[0])
  states = removal.states(model()[0], variables['balance'], out)
  return sum(
    np.asarray(program(params, states, b), float) for b in (batch(), batch(1))
  )


def test_a_model_without_the_expert_loses_as_much(measured):
  """The oracle: experts, columns of the router and bias are cut out."""
  _, program, _ = measured
  variables = jax.tree.map(np.copy, model()[1])
  own = variables['params']['decoder']['period']['block_0']['moe']
  block = variables['balance']['decoder']['period']['block_0']['moe']
  # In the other layer, too, which is scanned with it and has as many experts,
  # it is out: by the model's own bias.
  jax.tree.leaves(block)[0][0, 2] = -1e9
  whole, without = nats(program, variables), nats(program, variables, (1, 2))
  assert program._cache_size() == 1

  keep = np.array([0, 1, 3])
  own['router']['kernel'] = own['router']['kernel'][..., keep]
  own['experts'] = {k: v[:, keep] for k, v in own['experts'].items()}
  block['state'] = jax.tree.map(lambda v: v[..., keep], block['state'])
  config = tiny.config(**FIELDS | {'moe.num_experts': E - 1})
  smaller = factory.make(config, V)

  @jax.jit
  def run(b):
    return judge(smaller.apply(variables, b, train=False)[0], b)

  wanted = sum(np.asarray(run(b)) for b in (batch(), batch(1)))
  np.testing.assert_allclose(without, wanted, rtol=1e-5)
  assert abs(without - whole).max() > 0.1


def test_a_sibling_computes_in_an_experts_place(measured):
  found, program, _ = measured
  variables = jax.tree.map(np.copy, model()[1])
  whole = nats(program, variables)
  own = variables['params']['decoder']['period']['block_0']['moe']['experts']
  for v in own.values():
    v[1, 0] = v[1, 1]
  delta, domain = nats(program, variables) - whole, np.array(DOMAIN)
  for x, mine in enumerate((domain == 0, domain == 1, domain >= 0)):
    size = np.array(SIZE)[mine].sum()
    np.testing.assert_allclose(found['loss'][x], whole[mine].sum() / size)
    got = found['replaced'][1, 0, x]
    np.testing.assert_allclose(got, delta[mine].sum() / size, rtol=1e-3)
    low, high = (found[f'replaced_{k}'][1, 0, x] for k in ('low', 'high'))
    assert low <= got <= high if x else np.isnan([low, high]).all()


ROUTERS = {
  'top_k(k=2, renormalize=True)': True,
  'top_p(p=0.9)': False,
  'hash(k=2)': False,
  'expert_choice(choices=1.0)': False,
  'relu()': False,
}


@pytest.mark.parametrize('spec', ROUTERS)
def test_no_edge_goes_to_an_expert_that_is_out(spec):
  router = registry.build('routers', spec)
  without = removal.Without(router)
  assert without.takes_bias == router.takes_bias
  x_TD = jax.random.normal(jax.random.key(1), (8, 6))
  params = without.init(jax.random.key(0), E, 6)
  bias_E = jnp.array([0.0, -jnp.inf, 0, 0])
  ctx = types.Context(
    key=jax.random.key(2),
    mask_T=jnp.arange(8) < 7,
    selection_bias_E=bias_E,
    ids_T=jnp.arange(8),
    positions_T=jnp.arange(8),
    segments_T=jnp.ones(8, jnp.int32),
  )
  none = ctx.replace(selection_bias_E=jnp.zeros(E))

  @jax.jit
  def run(params):
    r, same = (without(params, x_TD, c) for c in (ctx, none))
    return r, same, router(params, x_TD, none)

  r, same, plain = run(params)
  assert not (r.expert_N == 1).any()
  assert np.isfinite(r.weight_N).all()
  for a, b in zip(*map(jax.tree.leaves, (same, plain)), strict=True):
    np.testing.assert_array_equal(a, b)
  assert (same.expert_N == 1).any()
  if ROUTERS[spec]:  # what renormalises gives all weight to others
    sums = [np.bincount(v.token_N, v.weight_N, 8) for v in (r, plain)]
    np.testing.assert_allclose(*sums, rtol=1e-5)


def test_slots_have_no_experts_to_be_out(monkeypatch):
  soft = registry.build('routers', 'soft()')
  slots = types.SlotRouting(token_N=None, expert_N=None, weight_N=None)
  monkeypatch.setattr(type(soft), '__call__', lambda *_: slots)
  with pytest.raises(
    UserError, match='the router soft mixes tokens into slots'
  ):
    removal.Without(soft)(None, None, None)


def test_a_loss_that_is_not_finite_names_the_expert(monkeypatch):
  def program(params, states, batch):
    del params, batch
    last = states['decoder']['period']['block_0']['moe']['state']['removal']
    return np.full(D, np.nan if np.isneginf(last[1, 0]) else 1.0)

  monkeypatch.setattr(importance, '_program', lambda *_: program)
  with pytest.raises(NotFiniteError, match='without expert 0 of decoder/1 is'):
    importance.measure(*model(), judge, [batch()], DOMAIN, SIZE)


def test_how_importance_goes_with_routing():
  rng = np.random.default_rng(0)
  share = rng.random((2, 8, 3))
  removed = np.stack([share[0] ** 3, rng.random((8, 3))])
  removed[:, 7] = np.nan
  found = importance.correlation(removed, share)
  np.testing.assert_allclose(found['value'][0], 1)
  assert found['null_high'][0] < 0.9
  assert found['null_low'][1] <= found['value'][1] <= found['null_high'][1]
  same = importance.correlation(np.zeros((1, 4, 2)), share[:1, :4, :2])
  assert np.isnan(same['value']).all()


def test_layers_that_share_experts_are_replaced_together():
  fields = {'moe.share_experts': 2, 'model.num_layers': 3, 'moe.layers': '1,2'}
  config = tiny.config(**FIELDS | fields)
  made = factory.make(config, V)
  shapes = jax.eval_shape(
    lambda: made.init(
      jax.random.key(0), factory.dummy_batch(config, B, L), train=False
    )
  )
  places = inside.places(made)
  assert [p.name for p in places] == ['decoder/1', 'decoder/2']
  found = [p.of(nn.unbox(shapes)['params']) for p in places]
  assert jax.tree.map(np.shape, found[0]) == {
    'wi': (E, 16, 32),
    'wo': (E, 32, 16),
  }
  assert places[0].experts == places[1].experts


def test_changing_the_layers_keeps_the_model():
  made, _ = model()
  recorded = inside.changed(made, lambda m: dataclasses.replace(m, record=True))
  assert all(p.moe.record for p in inside.places(recorded))
  assert (
    inside.changed(recorded, lambda m: dataclasses.replace(m, record=False))
    == made
  )
