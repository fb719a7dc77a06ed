"""Every router in a layer: meshes and dispatches agree, gradients flow."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax import registry, types
from moe_jax.layers import linen, moe
from moe_jax.parallel import mesh as mesh_lib
from tests import methods

B, L, D, E, T = 8, 6, 8, 4, 6
X = jax.random.normal(jax.random.key(5), (B, L, D))
OUT = jax.random.normal(jax.random.key(6), (B, L, D))
PLACE = jnp.broadcast_to(jnp.arange(L), (B, L))
KNOWN = types.Tokens(
  mask=PLACE < jnp.array([6, 6, 4, 6, 0, 6, 5, 6])[:, None],
  ids=jax.random.randint(jax.random.key(7), (B, L), 0, 50),
  positions=PLACE,
  segments=jnp.ones((B, L), jnp.int32),
  forced=jax.random.randint(jax.random.key(8), (B, L, 2, 2), 0, E + 1),
  step=jnp.int32(3),
)


def layer(row, dispatch, mesh):
  sizes = mesh_lib.exact(**mesh)
  local = ('zero()', 'copy()') if row.local else ()
  devices = jax.devices()[: int(np.prod(list(sizes.values())))]
  return linen.MoE(
    moe.MoE(
      num_experts=E - row.local,
      router=registry.build('routers', row.spec),
      experts=registry.build('experts', row.experts),
      dispatch=registry.build('dispatch', dispatch),
      group_size=T,
      capacity_factor=1.5,
      local_experts=tuple(registry.build('local_experts', s) for s in local),
      mesh=mesh_lib.make(sizes, devices),
    )
  )


def run(m, params, carry):
  def loss(params, x):
    y, carry_, aux = m.apply(
      {'params': params},
      x,
      KNOWN,
      carry,
      train=True,
      layer=1,
      rngs={'router': jax.random.key(9)},
    )
    return (y * OUT).sum(), {'y': y, 'carry': carry_, 'aux': aux}

  f = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
  return jax.device_get(f(params, X))


ROWS = methods.rows('routers')
# Every second of those that costly contracts take: the grid has them, too.
OFTEN = [row for row in ROWS if row.always][::2]


@pytest.mark.parametrize(
  'row',
  [
    pytest.param(
      row,
      id=row.spec,
      marks=() if row in OFTEN else pytest.mark.slow,
    )
    for row in ROWS
  ],
)
def test_layer_on_a_mesh(row):
  """Two dispatches and two meshes, one answer; every parameter learns."""
  one = layer(row, 'gather_reduce()', {})
  carry = one.core.router.init_carry(B * L, E)
  carry = jax.tree.map(
    lambda v: jax.random.normal(jax.random.key(3), (B, L, *v.shape[1:])), carry
  )
  init = jax.jit(
    lambda k: one.init({'params': k, 'router': k}, X, KNOWN, carry, train=True)
  )
  params = nn.unbox(init(jax.random.key(0)))['params']
  if 'router' in params:
    params['router'] = jax.tree.map(lambda v: 5 * v, params['router'])
  want = run(one, params, carry)
  name = 'lookup()' if row.experts == 'mlp(d_ff=1)' else 'scatter()'
  sizes = {'expert': 2, 'fsdp': 2, 'model': 2}
  sizes['model'] = 1 if row.experts == 'mlp(d_ff=1)' else 2
  got = run(layer(row, name, sizes), params, carry)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5),
    got,
    want,
  )
  gradients = want[1][0]
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
    assert np.isfinite(leaf).all() and np.abs(leaf).max() > 1e-6, path


def signature(row, monkeypatch):
  """What of a routing the rest of the layer can tell apart."""
  m, routings = layer(row, 'gather_reduce()', {}), []
  route = type(m.core.router).__call__
  keep = lambda *args: routings.append(route(*args)) or routings[-1]
  monkeypatch.setattr(type(m.core.router), '__call__', keep)
  carry = m.core.router.init_carry(B * L, E)
  carry = jax.tree.map(lambda v: jnp.zeros((B, L, *v.shape[1:])), carry)
  init = lambda k: m.init(
    {'params': k, 'router': k}, X, KNOWN, carry, train=True
  )
  jax.eval_shape(init, jax.random.key(0))
  monkeypatch.undo()
  r = routings[-1]
  fixed = (r.weight_on, r.renormalize_kept, r.first_fit)
  choices = None if r.choices is None else r.choices > 1
  of_row = (row.noisy, row.local, row.experts, row.by_expert, row.distinct)
  return jax.tree.structure(r.replace(**SAME)), choices, fixed, of_row


# Numbers that no layer depends on.
SAME = {'choices': 1, 'num_experts': E, 'num_local': 0}


@pytest.mark.slow
def test_each_kind_of_routing_is_always_tested(monkeypatch):
  have = {signature(r, monkeypatch) for r in methods.rows('routers')}
  always = [r for r in methods.rows('routers') if r.always]
  assert {signature(r, monkeypatch) for r in always} == have
  # Taken away, a kind is missed.
  fewer = [r for r in always if r.spec != 'no_token_left_behind(k=3)']
  assert {signature(r, monkeypatch) for r in fewer} != have


def test_what_a_router_does_not_get():
  row = methods.Row('hash()')
  m = layer(row, 'scatter()', {})
  with pytest.raises(ValueError, match='hash needs ids_T, which is not known'):
    jax.eval_shape(lambda: m.init(jax.random.key(0), X, train=True))
  m = layer(methods.Row('autonomy()'), 'scatter()', {})
  with pytest.raises(ValueError, match="show 'down'; these show 'mean', 'var"):
    jax.eval_shape(lambda: m.init(jax.random.key(0), X, train=True))
  m = layer(methods.Row('switch()'), 'slots()', {})
  with pytest.raises(ValueError, match='Switch and the dispatch Slots do not'):
    jax.eval_shape(lambda: m.init(jax.random.key(0), X, train=True))


def test_record_and_replay():
  """What was recorded happens again, drops and gradients included."""
  m = layer(methods.Row('top_k(k=2)'), 'scatter()', {})
  m = linen.MoE(dataclasses.replace(m.core, record=True))
  init = jax.jit(lambda k: m.init(k, X, KNOWN, train=True))
  params = nn.unbox(init(jax.random.key(0)))['params']
  (_, out), gradients = run(m, params, ())
  record = out['aux'].record
  assert record['expert'].shape == (B * L // T, 2 * T)
  np.testing.assert_array_equal(
    record['cause'] == types.KEPT, record['cause'] == 0
  )
  expert = record['expert'].reshape(-1, 2, T).swapaxes(1, 2)
  forced = np.zeros((B, L, 2, 2), int)
  forced[:, :, 1] = expert.reshape(B, L, 2)
  again = layer(methods.Row('replay()'), 'gather_reduce()', {})

  def loss(params):
    tokens = KNOWN.replace(forced=jnp.asarray(forced))
    y, _, aux = again.apply({'params': params}, X, tokens, train=True, layer=1)
    return (y * OUT).sum(), (y, aux.cause)

  g, (y, cause) = jax.jit(jax.grad(loss, has_aux=True))(params)
  np.testing.assert_array_equal(cause, out['aux'].cause)
  np.testing.assert_allclose(y, out['y'], atol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    g,
    gradients[0],
  )
