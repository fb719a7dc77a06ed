"""Contracts of every expert row, on buffers and as a dense FFN."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax import registry
from moe_jax.dispatch import base as dispatching
from moe_jax.experts import base
from moe_jax.layers import mlp
from tests import methods

E, R, D = 3, 5, 8
ids = lambda row: row.spec
each_kind = pytest.mark.parametrize('row', methods.rows('experts'), ids=ids)


def build(spec):
  kind = registry.build('experts', spec)
  params = kind.init(jax.random.key(0), E, D)
  keys = jax.random.split(jax.random.key(1), len(params))
  noise = {
    k: v + 0.1 * jax.random.normal(key, v.shape)
    for key, (k, v) in zip(keys, params.items())
  }
  return kind, noise


@each_kind
def test_equals_reference(row):
  kind, params = build(row.spec)
  x_ERD = jax.random.normal(jax.random.key(2), (E, R, D))
  got = kind(params, x_ERD, dispatching.buffer_ops(R, ()))
  plain = {k: np.asarray(v, np.float64) for k, v in params.items()}
  for e in range(E):
    for r in range(R):
      want = row.oracle(plain, e, np.asarray(x_ERD[e, r], np.float64))
      np.testing.assert_allclose(got[e, r], want, atol=2e-5)


@each_kind
def test_one_expert_is_the_dense_ffn(row):
  kind, params = build(row.spec)
  x_BLD = jax.random.normal(jax.random.key(3), (2, R, D))
  stacked = lambda k: base.is_stacked(kind.axes[k])
  one = {k: v[:1] if stacked(k) else v for k, v in params.items()}
  want = kind(one, x_BLD.reshape(1, -1, D), dispatching.buffer_ops(2 * R, ()))
  ffn = mlp.FFN(kind)
  own = {k: v[0] if stacked(k) else v for k, v in one.items()}
  got = ffn(own, x_BLD, train=False)
  np.testing.assert_allclose(got.reshape(1, -1, D), want, atol=1e-6)


def wide(spec):
  """The same kind, of such widths and ranks that its variances are sharp."""
  return re.sub('(d_ff|d_low|rank)=[0-9]+', r'\1=1024', spec)


@each_kind
def test_axes_and_fan_in(row):
  kind = registry.build('experts', wide(row.spec))
  params = kind.init(jax.random.key(0), E, 16)
  assert set(params) == set(kind.axes)
  for k, v in params.items():
    assert v.dtype == jnp.float32 and len(kind.axes[k]) == v.ndim
    stacked = base.is_stacked(kind.axes[k])
    assert v.shape[0] == E if stacked else 'expert' not in kind.axes[k]
    if v.ndim == 2 + stacked and v.any():
      # Fan-in of one expert; over the stack it would be E times smaller.
      np.testing.assert_allclose(v.var() * v.shape[-2], 1.0, rtol=0.05)


@each_kind
def test_halves_of_the_hidden_width_add_up(row):
  """As over a `model` axis of two, where the sum comes later."""
  kind, params = build(row.spec)
  x_ERD = jax.random.normal(jax.random.key(4), (E, R, D))
  half = lambda k, v: (
    jnp.stack(jnp.split(v, 2, kind.axes[k].index('mlp')))
    if 'mlp' in kind.axes[k]
    else jnp.stack([v, v])
  )
  part = lambda p: kind(p, x_ERD, dispatching.buffer_ops(R, ('model',)))
  got = jax.vmap(part, axis_name='model')(
    {k: half(k, params[k]) for k in params}
  )
  want = kind(params, x_ERD, dispatching.buffer_ops(R, ()))
  np.testing.assert_allclose(got.sum(0), want, atol=2e-5)


@each_kind
def test_bfloat16_stays(row):
  kind, params = build(row.spec)
  half = {k: v.astype(jnp.bfloat16) for k, v in params.items()}
  x = jnp.ones((E, R, D), jnp.bfloat16)
  assert kind(half, x, dispatching.buffer_ops(R, ())).dtype == jnp.bfloat16


def test_unknown_activation_lists_the_valid_ones():
  with pytest.raises(ValueError, match="'swish'; valid: gelu, gelu_exact"):
    registry.build('experts', "mlp(activation='swish')", d_ff=4)
  assert set(base.ACTIVATIONS) == {'gelu', 'gelu_exact', 'relu', 'silu'}
