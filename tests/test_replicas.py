"""Copies on several devices that should be equal."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.parallel import mesh as mesh_lib, replicas
from moe_jax.training import loop
from tests import tiny

P = jax.sharding.PartitionSpec


def mesh(**sizes):
  return mesh_lib.make(mesh_lib.exact(**sizes), jax.devices())


def place(value, spec, spoil=None):
  """Sharded over (data=4, model=2), one device's part changed."""
  sharding = jax.sharding.NamedSharding(mesh(data=4, model=2), spec)
  value = np.asarray(value)
  parts = []
  for device, index in sharding.addressable_devices_indices_map(
    value.shape
  ).items():
    part = value[index].copy()
    if device.id == spoil:
      part.reshape(-1)[-1:].view(np.uint8)[0] ^= 1  # one bit
    parts.append(jax.device_put(part, device))
  return jax.make_array_from_single_device_arrays(value.shape, sharding, parts)


def test_one_bit_on_one_device():
  f32, bf16 = np.zeros((8, 3), np.float32), np.zeros(8, jnp.bfloat16)
  for spec in (P(), P('data')):
    for value in (f32, bf16):
      tree = {'same': place(value, spec), 'not': [place(value, spec, spoil=3)]}
      assert replicas.differing(tree) == ['not/0']
  # Nobody else holds these parts.
  whole = place(f32, P(('data', 'model')), spoil=3)
  nan = place(np.full(4, np.nan, np.float32), P())
  keys = jax.device_put(jax.random.key(0), whole.sharding.mesh.devices.flat[1])
  assert not replicas.differing({'a': whole, 'b': nan, 'c': keys, 'd': 1.0})


def test_a_sum_that_was_forgotten():
  """jax shows the first device's value and says nothing."""
  leaves = jax.jit(
    jax.shard_map(
      lambda x: (x.sum(), jax.lax.psum(x.sum(), 'data')),
      mesh=mesh(data=8),
      in_specs=P('data'),
      out_specs=P(),
      check_vma=False,
    )
  )(jnp.arange(8.0))
  assert float(leaves[0]) == 0 and float(leaves[1]) == 28
  replicas.check(leaves[1], step=7)
  line = 'after step 7 devices hold different values of 1 arrays that should '
  with pytest.raises(RuntimeError, match=re.escape(line) + 'be equal: 0$'):
    replicas.check(leaves, step=7)


@pytest.mark.slow
def test_twenty_steps(tmp_path, monkeypatch):
  """Parameters, optimizer, balancing state and metrics of every step."""
  words = b'the router sends each token to one expert '.split()
  rng = np.random.default_rng(0)
  documents = [b' '.join(rng.choice(words, 30)) for _ in range(80)]
  (tmp_path / 'text.txt').write_bytes(b'\n\n'.join(documents))
  steps = []
  differing = replicas.differing

  def counted(tree):
    state, metrics = tree
    assert state.params and state.opt_state and state.balance and metrics
    steps.append(int(state.step))
    return differing(tree)

  monkeypatch.setattr(replicas, 'differing', counted)
  config = tiny.config(
    **{
      'data.name': 'text_files',
      'data.dir': str(tmp_path),
      'mesh': 'exact(data=2, expert=2, model=2)',
      'moe.balance': ('switch_loss()', 'loss_free_bias()'),
      'train.optimizer': 'adafactor()',
      'train.steps': 20,
      'train.checkpoint_every': 20,
      'train.check_replicas_every': 1,
    }
  )
  loop.train(config, str(tmp_path / 'run'))
  assert steps == list(range(1, 21))
