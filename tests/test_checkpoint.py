"""Checkpoints: bitwise round trips, damage found, steps kept, errors named."""

import collections
import json
import logging
import os
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from moe_jax.runs import checkpoint, pruning

Pair = collections.namedtuple('Pair', 'a b')


def mesh_of(shape):
  return jax.make_mesh(
    shape, ('x', 'y'), axis_types=(AxisType.Auto,) * len(shape)
  )


def make_state(mesh, seed=0):
  """Every kind of leaf a run has: float types, ints, keys, optax tuples."""
  rng = np.random.default_rng(seed)

  def put(x, *spec):
    return jax.device_put(x, NamedSharding(mesh, P(*spec)))

  w = jnp.asarray(rng.normal(size=(8, 16)), jnp.float32)
  params = {
    'w': put(w, 'x', 'y'),
    'h': put(w.astype(jnp.bfloat16), 'y'),
    'layer.0': {'b': put(jnp.asarray(rng.normal(size=3), jnp.float32))},
  }
  return {
    'params': params,
    'opt': jax.tree.map(put, optax.adam(1e-3).init({'b': jnp.ones(3)})),
    'balance': Pair(put(jnp.arange(8, dtype=jnp.int32), 'x'), put(jnp.ones(2))),
    'none': put(jnp.zeros((0, 8))),
    'key': put(jax.random.key(seed)),
    'step': put(jnp.int32(7)),
  }


def raw(x):
  x = (
    jax.random.key_data(x)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    else x
  )
  return np.asarray(x).tobytes()


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for (path, x), y in zip(
    jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b)
  ):
    assert x.dtype == y.dtype and x.shape == y.shape, path
    assert raw(x) == raw(y), path


def abstract(state, mesh=None, spec=None):
  def one(x):
    sharding = x.sharding
    if mesh is not None:
      sharding = NamedSharding(mesh, spec if x.ndim == 2 and x.size else P())
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  return jax.tree.map(one, state)


def small(value=0.0):
  x = jax.device_put(
    jnp.full((4, 4), float(value)), NamedSharding(mesh_of((2, 4)), P())
  )
  return {'params': {'w': x}}


def fill(directory, steps, keep=10):
  with checkpoint.Checkpointer(directory, keep=keep) as c:
    for s in steps:
      c.save(s, small(s), {'data_step': s})


def value_of(state):
  return float(state['params']['w'][0, 0])


def test_round_trip_is_bitwise(tmp_path):
  state = make_state(mesh_of((2, 4)))
  data = {'data_step': 12, 'fingerprint': 'ab', 'config': {'a': [1, 2.5]}}
  with checkpoint.Checkpointer(tmp_path / 'c', keep=2) as c:
    assert c.latest() is None
    c.save(7, state, data)
    c.wait()
    assert c.latest() == 7
    got, got_data = c.restore(abstract(state))
  assert_same(got, state)
  assert got_data == data
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(state)):
    assert x.sharding.is_equivalent_to(y.sharding, x.ndim)
  draw = jax.random.normal(got['key'], (3,))
  np.testing.assert_array_equal(draw, jax.random.normal(state['key'], (3,)))


@pytest.mark.parametrize('shape', [(4, 2), (1, 8), (1, 1)])
def test_restores_onto_another_mesh(tmp_path, shape):
  state = make_state(mesh_of((2, 4)))
  mesh = mesh_of(shape)
  with checkpoint.Checkpointer(tmp_path, keep=1) as c:
    c.save(1, state, {})
    got, _ = c.restore(abstract(state, mesh, P('y', 'x')))
  assert_same(got, state)
  assert got['params']['w'].sharding == NamedSharding(mesh, P('y', 'x'))
  assert got['none'].sharding.mesh == mesh


def test_keeps_the_newest(tmp_path):
  fill(tmp_path, [1, 2, 5, 10, 20], keep=2)
  assert sorted(os.listdir(tmp_path)) == ['10', '20', '_tmp']
  assert os.listdir(tmp_path / '_tmp') == []
  with checkpoint.Checkpointer(tmp_path, keep=2) as c:
    state, data = c.restore(abstract(small()), step=10)
    assert value_of(state) == 10 and data == {'data_step': 10}
    assert c.latest() == 20


def test_what_is_saved_to_be_kept_stays(tmp_path):
  """Whoever goes on; damage is still moved aside, and found when asked for."""
  with checkpoint.Checkpointer(tmp_path, keep=1) as c:
    for s in (1, 2, 3, 4):
      c.save(s, small(s), {}, keep=s in (1, 3))
  assert checkpoint.steps(tmp_path) == [1, 3, 4]
  (tmp_path / '3' / 'meta.json').write_text('{')
  fill(tmp_path, [5, 6], keep=2)
  assert checkpoint.steps(tmp_path) == [1, 3, 5, 6]
  with checkpoint.Checkpointer(tmp_path, keep=1) as c:
    assert value_of(c.restore(abstract(small()), step=1)[0]) == 1
    with pytest.raises(ValueError, match=r'3 is damaged: meta\.json'):
      c.restore(abstract(small()), step=3)
    for s in (5, 6):
      empty(tmp_path / str(s))
    assert value_of(c.restore(abstract(small()))[0]) == 1
  assert sorted(os.listdir(tmp_path / '_quarantine')) == ['3', '5', '6']


def test_steps_at_shares():
  shares = (0.01, 0.02, 0.05, 0.7, 1.0)
  assert pruning.at_shares(shares, 1000) == {10, 20, 50, 700, 1000}
  assert pruning.at_shares(shares, 24) == {1, 17, 24}  # some fall together


def test_save_reads_the_buffers_before_it_returns(tmp_path):
  """Donation right after save must not reach the disk."""
  sharding = NamedSharding(mesh_of((2, 4)), P('x', 'y'))
  step = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
  with checkpoint.Checkpointer(tmp_path, keep=20) as c:
    for s in range(8):
      x = jax.device_put(jnp.full((256, 256), float(s)), sharding)
      c.save(s, {'x': x}, {})
      for _ in range(3):
        x = step(x)
      x.delete()
    want = {'x': jax.ShapeDtypeStruct((256, 256), 'float32', sharding=sharding)}
    for s in range(8):
      got, _ = c.restore(want, step=s)
      assert (np.asarray(got['x']) == s).all()


def test_every_flipped_bit_is_found(tmp_path, caplog):
  """In each file of a step (its manifest, too), several random bits."""
  fill(tmp_path / 'good', [1, 2])
  rng = random.Random(0)
  files = [
    p.relative_to(tmp_path / 'good')
    for p in sorted((tmp_path / 'good' / '2').rglob('*'))
    if p.is_file()
  ]
  assert len(files) > 5
  for name in files:
    for _ in range(3):
      shutil.rmtree(tmp_path / 'bad', ignore_errors=True)
      shutil.copytree(tmp_path / 'good', tmp_path / 'bad')
      content = bytearray((tmp_path / 'bad' / name).read_bytes())
      at = rng.randrange(len(content))
      content[at] ^= 1 << rng.randrange(8)
      (tmp_path / 'bad' / name).write_bytes(content)
      caplog.clear()
      with checkpoint.Checkpointer(tmp_path / 'bad', keep=3) as c:
        with caplog.at_level(logging.WARNING, 'absl'):
          state, data = c.restore(abstract(small()))
        assert value_of(state) == 1 and data == {'data_step': 1}, (name, at)
        assert c.latest() == 1
      assert (tmp_path / 'bad' / '_quarantine' / '2').is_dir()
      lines = [r.getMessage() for r in caplog.records if r.name == 'absl']
      lines = [m for m in lines if 'is damaged' in m]
      assert len(lines) == 1 and 'moved to _quarantine/2' in lines[0]


def empty(step):
  shutil.rmtree(step)
  step.mkdir()


def truncate(step):
  files = [p for p in (step / 'state').rglob('*') if p.is_file()]
  path = max(files, key=lambda p: p.stat().st_size)
  os.truncate(path, path.stat().st_size - 1)


def lose_a_file(step):
  (step / 'meta.json').unlink()


def lose_the_manifest(step):
  (step / 'MANIFEST.json').unlink()


@pytest.mark.parametrize(
  'damage,fault',
  [
    (empty, r'no readable MANIFEST\.json'),
    (truncate, r'state/.* has \d+ bytes, not \d+'),
    (lose_a_file, r'meta\.json: No such file'),
    (lose_the_manifest, r'no readable MANIFEST\.json'),
  ],
)
def test_falls_back_over_damage(tmp_path, damage, fault):
  fill(tmp_path, [3, 6, 9])
  damage(tmp_path / '9')
  damage(tmp_path / '6')
  with checkpoint.Checkpointer(tmp_path, keep=3) as c:
    with pytest.raises(ValueError, match=f'6 is damaged: {fault}'):
      c.restore(abstract(small()), step=6)
    assert (tmp_path / '6').exists()  # Asked for by number: left where it is.
    state, _ = c.restore(abstract(small()))
    assert value_of(state) == 3
    c.save(6, small(6), {})  # The place is free again.
    c.wait()
    damage(tmp_path / '6')
    c.restore(abstract(small()))
    assert sorted(os.listdir(tmp_path / '_quarantine')) == ['6', '6_1', '9']
    damage(tmp_path / '3')
    with pytest.raises(ValueError, match='no usable checkpoint: all 1 were'):
      c.restore(abstract(small()))
    with pytest.raises(ValueError, match='holds no checkpoint'):
      c.restore(abstract(small()))


def test_what_a_kill_leaves_is_not_seen(tmp_path):
  """Half a save, half a deletion and foreign names are not steps."""
  fill(tmp_path, [1])
  (tmp_path / '_tmp' / '9' / 'state').mkdir(parents=True)
  (tmp_path / '007').mkdir()
  (tmp_path / 'notes').mkdir()
  (tmp_path / '8').write_text('a file')
  with checkpoint.Checkpointer(tmp_path, keep=3) as c:
    assert c.latest() == 1
    assert value_of(c.restore(abstract(small()))[0]) == 1
    c.save(2, small(2), {})
    c.wait()
    assert os.listdir(tmp_path / '_tmp') == []


def test_a_failed_saves_stragglers_do_not_block_the_next(tmp_path, monkeypatch):
  """Orbax's threads may write again what the next save has just deleted."""
  with checkpoint.Checkpointer(tmp_path, keep=3) as c:
    c.save(1, small(1), {})
    c.wait()
    (tmp_path / '_tmp' / '2' / 'state').mkdir(parents=True)
    (tmp_path / '_tmp' / '2_1' / 'state').mkdir(parents=True)
    monkeypatch.setattr(shutil, 'rmtree', lambda *_, **__: None)
    c.save(2, small(2), {})
    assert value_of(c.restore(abstract(small()))[0]) == 2


def test_names_the_leaves_that_differ(tmp_path):
  state = make_state(mesh_of((2, 4)))
  with checkpoint.Checkpointer(tmp_path, keep=1) as c:
    c.save(4, state, {})
    want = abstract(state)
    want['params']['new'] = want['params']['w']
    want['params'].pop('h')
    w = want['params']['w']
    want['params']['w'] = jax.ShapeDtypeStruct(
      (16, 8), w.dtype, sharding=w.sharding
    )
    b = want['balance'].b
    want['balance'] = want['balance']._replace(
      b=jax.ShapeDtypeStruct(b.shape, jnp.bfloat16, sharding=b.sharding)
    )
    want['step'] = jax.ShapeDtypeStruct((), jnp.int32)
    with pytest.raises(ValueError) as e:
      c.restore(want)
    message = str(e.value)
    assert '\n' not in message
    for part in (
      'params/new is not in it',
      'params/h is in it only',
      'params/w is (8, 16) float32 in it, (16, 8) float32 here',
      'balance/b is (2,) float32 in it, (2,) bfloat16 here',
      'step has no sharding here',
    ):
      assert part in message
    assert c.latest() == 4  # Another model is no reason for quarantine.


def test_refuses_bad_calls(tmp_path):
  with pytest.raises(ValueError, match='keep is 0'):
    checkpoint.Checkpointer(tmp_path, keep=0)
  with checkpoint.Checkpointer(tmp_path / 'c', keep=2) as c:
    with pytest.raises(ValueError, match='holds no checkpoint'):
      c.restore(abstract(small()))
    c.save(1, small(), {})
    with pytest.raises(ValueError, match='step 1 is already saved'):
      c.save(1, small(), {})
    with pytest.raises(ValueError, match=r'no step 2 in .*; there are: 1$'):
      c.restore(abstract(small()), step=2)
    with pytest.raises(ValueError, match='JSON'):
      c.save(2, small(), {'loss': float('nan')})
    with pytest.raises(ValueError, match='share a name'):
      c.save(2, {'a/b': jnp.ones(1), 'a': {'b': jnp.ones(1)}}, {})
    assert c.latest() == 1


def test_manifest_lists_every_file(tmp_path):
  fill(tmp_path, [1])
  step = tmp_path / '1'
  text = (step / 'MANIFEST.json').read_text()
  assert not any(c.isspace() for c in text)  # It could flip unnoticed.
  listed = json.loads(text)['files']
  found = {
    p.relative_to(step).as_posix() for p in step.rglob('*') if p.is_file()
  }
  assert found - set(listed) == {'MANIFEST.json'} and set(listed) < found
