"""What experts compute: similarity, sizes, super experts."""

import dataclasses
import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

from moe_jax import types
from moe_jax.analysis import inside, outputs
from moe_jax.models import factory
from moe_jax.parallel import mesh as mesh_lib
from tests import tiny

B, L, V, E = 4, 16, 32, 4
FIELDS = {
  'moe.layers': 'all',
  'moe.router': 'top_k(k=2)',
  'moe.eval_capacity_factor': 0.75,
  'moe.allow_noncausal': True,
}


def batch(seed=0):
  rng = np.random.default_rng(seed)
  segment = np.repeat([1, 0], [13, 3])
  return {
    'inputs': rng.integers(3, V, (B, L)).astype(np.int32),
    'segments': np.tile(segment, (B, 1)).astype(np.int32),
    'positions': np.tile(np.arange(L), (B, 1)).astype(np.int32),
  }


@functools.cache
def model():
  """Of two MoE layers that are scanned, and drop."""
  config = tiny.config(**FIELDS)
  made = factory.make(config, V)
  b = factory.dummy_batch(config, B, L)
  init = jax.jit(lambda key: nn.unbox(made.init(key, b, train=False)))
  return made, jax.device_get(init(jax.random.key(0)))


def planted():
  """Expert 1 of the second layer is expert 0's, and 2's outputs are huge."""
  made, variables = model()
  change = lambda v: v.copy()
  params = jax.tree.map(change, variables['params'])
  own = params['decoder']['period']['block_0']['moe']['experts']
  for v in own.values():
    v[1, 1] = v[1, 0]
  last = next(k for k in own if own[k].shape[-1] == 16)
  own[last][1, 2] *= 1000
  return made, {'params': params}


@pytest.fixture(scope='module')
def found():
  made, variables = planted()
  return outputs.measure(made, variables, [batch(), batch(1)], tokens=80)


def test_outputs_are_those_of_the_layer():
  """The layer's own result is the weighted sum of the kept choices' outputs."""
  made, variables = planted()
  recorded = inside.changed(made, lambda m: dataclasses.replace(m, record=True))
  places, b = inside.places(recorded), batch()
  own = variables['params']['decoder']['period']['block_0']['moe']

  @jax.jit
  def run(variables):
    out = []
    fed = inside.fed(recorded, variables, b)
    for i, (place, (x_BLD, aux)) in enumerate(zip(places, fed, strict=True)):
      params = jax.tree.map(lambda v, i=i: v[i], own)
      tokens = types.Tokens(mask=b['segments'] > 0)
      y_BLD, _, _ = place.moe(params, {}, x_BLD, tokens, train=False)
      w = place.of(variables['params'])
      y_ETD = inside.dense(place.moe, w, x_BLD.reshape(B * L, -1))
      out.append((y_BLD.reshape(B * L, -1), y_ETD, aux.record))
    return out

  assert [p.name for p in places] == ['decoder/0', 'decoder/1']
  dropped = 0
  for y_TD, y_ETD, record in jax.device_get(run(variables)):
    total = np.zeros_like(y_TD)
    for g, n in np.ndindex(record['token'].shape):
      t = g * (B * L // len(record['token'])) + record['token'][g, n]
      if record['cause'][g, n] == types.KEPT:
        total[t] += record['weight'][g, n] * y_ETD[record['expert'][g, n], t]
      dropped += record['cause'][g, n] == types.CAPACITY
    np.testing.assert_allclose(total, y_TD, rtol=1e-4, atol=1e-4)
  assert dropped > 0


def test_doubles_and_super_experts_are_found(found):
  assert found['layers'] == ['decoder/0', 'decoder/1']
  assert found['doubles'] == [[], [[0, 1]]]
  assert found['super'] == [(1, 2)]
  for k in ('cka', 'weights'):
    np.testing.assert_allclose(found[k][1][0, 1], 1)
    assert abs(found[k][0][0, 1]) < 0.9
  np.testing.assert_allclose(found['distance'][1][0, 1], 0, atol=1e-6)
  assert outputs.siblings(found['distance'])[1][:2].tolist() == [1, 0]
  # Experts that were drawn, as these were, are alike on the same tokens.
  np.testing.assert_allclose(
    found['cka_mean'][0], found['cka_null'][0], atol=0.2
  )
  assert found['cka_null'][0] > 0.2
  assert found['cka_mean'][1] > found['cka_null'][1] + 0.05
  assert found['tokens'] == found['compared'] == [104, 104]  # without padding


def test_sizes_are_those_of_a_loop(found):
  made, variables = planted()
  recorded = inside.changed(made, lambda m: dataclasses.replace(m, record=True))
  places, tokens = inside.places(recorded), 0
  largest, square, count = np.zeros((2, E)), np.zeros((2, E)), np.zeros((2, E))
  feed = jax.jit(functools.partial(inside.fed, recorded))
  for b in (batch(), batch(1)):
    real = np.flatnonzero(b['segments'].reshape(-1))
    tokens += len(real)
    fed = jax.device_get(feed(variables, b))
    for m, (x_BLD, aux) in enumerate(fed):
      x_TD, w = x_BLD.reshape(B * L, -1), places[m].of(variables['params'])
      for g, n in np.ndindex(aux.record['token'].shape):
        edge = {k: aux.record[k][g, n] for k in ('token', 'expert', 'cause')}
        t, e = g * 16 + edge['token'], edge['expert']
        if edge['cause'] == types.KEPT and t in real:
          y = np.maximum(x_TD[t] @ w['wi'][e], 0) @ w['wo'][e]
          largest[m, e] = max(largest[m, e], abs(y).max())
          square[m, e] += (y**2).sum()
          count[m, e] += 1
  assert tokens == 104
  np.testing.assert_allclose(found['largest'], largest, rtol=1e-4)
  norm = np.sqrt(square / count / 16)
  np.testing.assert_allclose(found['norm'], norm, rtol=1e-4)


def test_rows_are_thinned_at_even_distances():
  whole = outputs.Thinned(10)
  whole.add(np.arange(57))
  assert whole.rows == list(range(0, 57, 8))
  pieces = outputs.Thinned(10)
  for piece in np.split(np.arange(57), (3, 4, 30)):
    pieces.add(piece)
  assert pieces.rows == whole.rows


def test_linear_cka_is_that_of_its_equation():
  rng = np.random.default_rng(0)
  y = rng.normal(size=(3, 50, 4))
  turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
  y[1] = 3 * y[0] @ turn + 7
  found = outputs.cka(y)
  centred = y - y.mean(1, keepdims=True)
  size = lambda a, b: np.linalg.norm(a.T @ b) ** 2
  for i in range(3):
    for j in range(3):
      a, b = centred[i], centred[j]
      wanted = size(a, b) / np.sqrt(size(a, a) * size(b, b))
      np.testing.assert_allclose(found[i, j], wanted)
  np.testing.assert_allclose(found[0, 1], 1)
  assert found[0, 2] < 0.2


def test_distances_are_those_of_a_loop():
  rng = np.random.default_rng(1)
  y = rng.normal(size=(3, 40, 5))
  y[1] = y[0]
  found = outputs.distances(y)
  norm = np.linalg.norm
  for i in range(3):
    for j in range(3):
      mean = np.sqrt((norm(y[i]) ** 2 + norm(y[j]) ** 2) / 2)
      wanted = norm(y[i] - y[j]) / mean
      np.testing.assert_allclose(found[i, j], wanted, atol=1e-7)
  assert outputs.siblings([found])[0].tolist()[:2] == [1, 0]


def test_super_experts_pass_all_three_bars():
  size = [np.full(150, 1.0), np.full(150, 1.0)]
  size[0][3], size[1][7], size[1][9] = 500.0, 80.0, 9.0
  assert outputs.supers(size) == [(0, 3), (1, 7)]
  size[1][7] = 40.0  # less than a tenth of the largest
  assert outputs.supers(size) == [(0, 3)]
  size[0][3], size[1][7] = 8.0, 1.0  # less than ten times the median
  size[0][5] = np.nan
  assert outputs.supers(size) == []
  assert outputs.supers([np.full(4, np.nan)]) == []


@pytest.mark.slow
def test_on_a_mesh_outputs_are_the_same(found):
  _, variables = planted()
  mesh = mesh_lib.make('auto(expert=4)')
  sharded = factory.make(tiny.config(**FIELDS), V, mesh)
  twice = lambda b: {k: np.concatenate([v, v]) for k, v in b.items()}
  b = [twice(batch()), twice(batch(1))]
  got = outputs.measure(sharded, variables, b, tokens=160)
  assert got['doubles'] == found['doubles']
  for k in ('weights', 'cka', 'distance'):
    np.testing.assert_allclose(got[k], found[k], atol=1e-4, err_msg=k)
  np.testing.assert_allclose(got['largest'], found['largest'], rtol=1e-3)


def test_both_stacks_are_looked_at():
  fields = {
    'model.kind': 'encoder_decoder',
    'model.positions': 'relative',
    'data.objective': 'span_corruption()',
    'moe.allow_noncausal': True,
  }
  config = tiny.config(**fields)
  made = factory.make(config, V)
  b = factory.dummy_batch(config, B, 2 * L, L)
  recorded = inside.changed(made, lambda m: dataclasses.replace(m, record=True))

  def run():
    variables = nn.unbox(recorded.init(jax.random.key(0), b, train=False))
    return outputs._fed(recorded, variables, b)

  assert [p.name for p in inside.places(made)] == ['encoder/1', 'decoder/1']
  rows = [jax.tree.map(np.shape, f) for f in jax.eval_shape(run)]
  assert rows == [
    ((B * 2 * L, 16), (B * 2 * L, E), (B * 2 * L,)),
    ((B * L, 16), (B * L, E), (B * L,)),
  ]
