"""Which kernel attention goes through; what it computes is tested in models."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax import registry
from moe_jax.layers import attention, heads
from moe_jax.models import records, stack


def device(platform, capability='9.0'):
  client = types.SimpleNamespace(platform_version=platform)
  return types.SimpleNamespace(client=client, compute_capability=capability)


@pytest.fixture
def devices(monkeypatch):
  """Lets the machine have one device of a kind."""

  def have(*args):
    attention._has_cudnn.cache_clear()
    monkeypatch.setattr(jax, 'devices', lambda: [device(*args)])

  yield have
  attention._has_cudnn.cache_clear()


def choice(dtype=jnp.bfloat16, L=64, S=64, J=128, bias=None):
  S_ = jax.ShapeDtypeStruct
  return attention.implementation(
    S_((2, L, 4, J), dtype), S_((2, S, 4, J), dtype), bias
  )


def test_cudnn_where_it_can(devices):
  devices('cuda 13000')
  assert choice() == choice(jnp.float16) == 'cudnn'
  # Full precision, decoding, odd lengths, wide or odd heads, learned biases.
  others = [
    choice(jnp.float32),
    choice(L=2),
    choice(L=1, S=1),
    choice(L=63, S=63),
    choice(J=256),
    choice(J=60),
    choice(bias=jnp.zeros((1, 4, 64, 64))),
  ]
  assert others == ['xla'] * len(others)


@pytest.mark.parametrize(
  'kind', [('cuda 13000', '7.5'), ('rocm 6',), ('cpu',), ('tpu',)]
)
def test_xla_elsewhere(devices, kind):
  devices(*kind)
  assert choice() == 'xla'


def test_causal_says_what_the_mask_says():
  """A kernel that skips later keys computes the same."""
  x = jax.random.normal(jax.random.key(0), (2, 12, 8))
  segment = np.repeat([[1, 2, 3]], 4, 1) * np.ones((2, 1), int)
  mask = (segment[:, :, None] == segment[:, None]) & np.tri(12, dtype=bool)
  position = jnp.tile(jnp.arange(12), (2, 1))
  outputs = []
  for causal in (False, True):
    kind = heads.Full(num_heads=2, d_head=4)
    layer = heads.Attention(kind, causal=causal)
    params = layer.init(jax.random.key(1), x, x, mask, position)
    outputs.append(layer.apply(params, x, x, mask, position))
  np.testing.assert_allclose(*outputs, atol=1e-6)


@pytest.mark.parametrize('cached', [False, True])
def test_only_whole_sequences_are_causal(monkeypatch, cached):
  """With a cache the keys are more than the queries, and cross sees all."""
  seen = {}
  real = heads.Attention.__post_init__

  def record(self):
    seen[self.name] = self.causal
    real(self)

  monkeypatch.setattr(heads.Attention, '__post_init__', record)
  layer = records.Layer(
    attention=heads.Full(num_heads=2, d_head=4),
    ffn=registry.build('experts', 'glu()', d_ff=8),
  )
  config = records.StackConfig((layer,), d_model=8, cross=True)
  x = jnp.ones((1, 4, 8))
  one = jnp.ones((1, 4), jnp.int32)
  position = jnp.arange(4)[None]
  model = stack.Stack(config, cache_length=6 if cached else 0)
  init = lambda: model.init(
    jax.random.key(0),
    x,
    position,
    one,
    train=True,
    encoded_BSD=x,
    encoded_segment_BS=one,
  )
  jax.eval_shape(init)
  assert seen['attention'] is not cached and not seen['cross']
