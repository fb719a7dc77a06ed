"""Dropout: of experts by row, unit or expert, of FFNs, of attention weights."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax import registry, types
from moe_jax.dispatch import base as dispatching
from moe_jax.layers import heads, mlp
from moe_jax.parallel import axes as axes_lib, mesh as mesh_lib
from tests import test_moe

E, R, F = 3, 40, 64
ONE = axes_lib.make(mesh_lib.exact())
RATE = 0.25


def drop(mask, key=0, rows=None, ones=None):
  d = dispatching.dropper(
    jax.random.key(key),
    jnp.arange(E),
    jnp.arange(R) if rows is None else rows,
    ONE,
  )
  return np.asarray(
    d(jnp.ones((E, R, F)) if ones is None else ones, RATE, mask)
  )


@pytest.mark.parametrize('mask', ['row', 'shared', 'expert'])
def test_masks(mask):
  """Mesh-TensorFlow's by row; flaxformer's by unit; ST-MoE's whole experts."""
  kept = np.concatenate([drop(mask, key) for key in range(20)])
  scaled = kept[kept > 0]
  np.testing.assert_allclose(scaled, 1 / (1 - RATE), rtol=1e-6)
  np.testing.assert_allclose((kept > 0).mean(), 1 - RATE, atol=0.12)
  across_rows = (kept == kept[:, :1]).all()
  across_units = (kept == kept[..., :1]).all()
  assert across_rows == (mask != 'row')
  assert across_units == (mask == 'expert')
  assert not (kept == kept[:1]).all()  # experts differ


def test_a_rows_mask_follows_its_number():
  order = np.random.default_rng(0).permutation(R)
  np.testing.assert_array_equal(
    drop('row', rows=jnp.asarray(order)), drop('row')[:, order]
  )


def test_without_key_or_rate_nothing_is_dropped():
  assert dispatching.dropper(None, jnp.arange(E), jnp.arange(R), ONE) is None
  ops = dispatching.buffer_ops(R, ())
  x = jnp.ones((E, R, F))
  assert ops.drop(x, 0.5, 'row') is x
  d = dispatching.dropper(jax.random.key(0), jnp.arange(E), jnp.arange(R), ONE)
  assert d(x, 0.0, 'row') is x


def test_bfloat16_stays():
  assert drop('row', ones=jnp.ones((E, R, F), jnp.bfloat16)).dtype == 'bfloat16'


@functools.cache
def output(dispatch, sizes, experts, train=True, key=3):
  """A layer's output with dropout; the hidden width splits over `model`."""
  m = test_moe.layer(dispatch, 'top_k()', dict(sizes), experts=experts)
  plain = experts.split(', dropout')[0] + ')'
  v = test_moe.variables('top_k()', experts=plain)
  rngs = {'dropout': jax.random.key(key)}
  f = jax.jit(lambda v, x: m.apply(v, x, train=train, rngs=rngs)[0])
  return np.asarray(f(v, test_moe.X))


MESHES = [
  (),
  (('data', 2), ('expert', 4)),
  (('expert', 2), ('fsdp', 2), ('model', 2)),
]


CASES = [
  ('scatter()', MESHES[2], 'row'),
  ('scatter()', MESHES[2], 'shared'),
  ('scatter()', MESHES[1], 'expert'),
  ('gather_reduce()', MESHES[1], 'row'),
  ('ragged_all_to_all(buffer_factor=9.0)', MESHES[2], 'row'),
]
MORE = [
  ('scatter()', MESHES[0], 'row'),
  ('scatter()', MESHES[1], 'row'),
  ('einsum()', MESHES[1], 'row'),
  ('dense()', MESHES[2], 'row'),
  ('scatter(pipeline_degree=2)', MESHES[1], 'row'),
  ('lookup()', MESHES[1], 'row'),
]


@pytest.mark.parametrize(
  ('dispatch', 'sizes', 'mask'),
  [*CASES, *(pytest.param(*c, marks=pytest.mark.slow) for c in MORE)],
)
def test_masks_do_not_depend_on_the_mesh(dispatch, sizes, mask):
  """The same seats drop on one device and on eight, however they are split."""
  experts = f'mlp(bias=True, dropout=0.5, dropout_mask={mask!r})'
  want = output('dense()', (), experts)
  np.testing.assert_allclose(output(dispatch, sizes, experts), want, atol=2e-5)
  clean = output('dense()', (), experts, train=False)
  assert np.abs(want - clean).max() > 0.01
  other = output('dense()', (), experts, key=4)
  assert np.abs(want - other).max() > 0.01


def test_experts_drop_in_training_only():
  with_ = output('dense()', (), 'mlp(bias=True, dropout=0.5)', train=False)
  m = test_moe.layer('dense()', 'top_k()', experts='mlp(bias=True)')
  v = test_moe.variables('top_k()', experts='mlp(bias=True)')
  plain = jax.jit(lambda v, x: m.apply(v, x, train=False)[0])(v, test_moe.X)
  np.testing.assert_array_equal(with_, plain)


@pytest.mark.parametrize('spec', ['mlp(d_ff=64, dropout=0.5)', 'glu(d_ff=64)'])
def test_ffn_drops_hidden_units(spec):
  kind = registry.build('experts', spec, dropout=0.5)
  ffn = mlp.FFN(kind)
  x = jnp.ones((2, 3, 8))
  w = ffn.init(jax.random.key(0), 8)
  run = lambda train, key: np.asarray(
    ffn(w, x, jax.random.key(key), train=train)
  )
  np.testing.assert_array_equal(run(False, 0), run(False, 1))
  assert np.abs(run(True, 0) - run(True, 1)).max() > 1e-3
  # Tokens are alike, their masks are not; on average nothing changes.
  assert np.abs(np.diff(run(True, 0), axis=1)).max() > 1e-3
  mean = np.mean([run(True, k) for k in range(400)], axis=0)
  np.testing.assert_allclose(mean, run(False, 0), atol=0.2)


def test_attention_dropout_keeps_its_mean_and_its_mask():
  """T5X: weights are dropped for all queries of a head alike."""
  x = jax.random.normal(jax.random.key(0), (2, 6, 8))
  past = jnp.tril(jnp.ones((6, 6), bool))[None].repeat(2, 0)
  bias = jax.random.normal(jax.random.key(2), (2, 2, 6, 6))
  make = functools.partial(
    heads.Attention,
    heads.Full(num_heads=2, d_head=4, positions='none'),
  )
  v = nn.unbox(jax.jit(make().init)(jax.random.key(1), x, x, past))

  @functools.partial(jax.jit, static_argnums=0)
  def run(rate, seed, x, mask):
    m, rngs = make(dropout=rate), {'dropout': jax.random.key(seed)}
    return m.apply(v, x, x, mask, None, bias, rngs=rngs)

  clean = np.asarray(run(0.0, 0, x, past))
  draws = np.stack([run(0.5, seed, x, past) for seed in range(800)])
  assert draws.std(0).max() > 0.05
  np.testing.assert_allclose(draws.mean(0), clean, atol=0.15)
  # With a rate near 0 it is the attention that evaluation runs.
  np.testing.assert_allclose(run(1e-9, 0, x, past), clean, atol=1e-5)
  # The future stays unseen.
  other = run(0.5, 0, x.at[:, 4:].set(1.0), past)
  np.testing.assert_array_equal(other[:, :4], draws[0][:, :4])
  # One draw for all queries of a head: dropped keys are the same for all, so
  # that with one key each head gives 0 or twice its value to everybody.
  one = jnp.zeros((2, 6, 6), bool).at[:, :, 0].set(True)
  out, whole = run(0.5, 0, x, one), np.asarray(run(0.0, 0, x, one))
  np.testing.assert_allclose(whole - whole[:, :1], 0, atol=1e-6)
  np.testing.assert_allclose(out - out[:, :1], 0, atol=1e-6)
  assert np.abs(out - whole).max() > 0.01


def test_padding_is_routed_where_asked():
  """T5X and Hugging Face: padding takes seats and enters the losses."""
  m = test_moe.layer(route_padding=True)
  v, x = test_moe.variables(), test_moe.X
  padded = types.Tokens(jnp.asarray(test_moe.MASK))
  _, _, aux = jax.jit(lambda v: m.apply(v, x, padded, train=True))(v)
  _, _, all_ = jax.jit(lambda v: test_moe.layer().apply(v, x, train=True))(v)
  jax.tree.map(np.testing.assert_array_equal, aux, all_)
  assert int(aux.cause[3]) == 0 and int(aux.load_E.sum()) == 2 * x[..., 0].size


def test_identical_experts_start_equal():
  """V-MoE's code starts all experts from one draw; others do not."""
  for identical in (True, False):
    m = test_moe.layer(identical_experts=identical)
    init = jax.jit(lambda k, m=m: nn.unbox(m.init(k, test_moe.X, train=False)))
    wi = np.asarray(init(jax.random.key(0))['params']['experts']['wi'])
    assert (wi == wi[:1]).all() == identical
    np.testing.assert_allclose(wi.var() * wi.shape[1], 1.0, rtol=0.3)


@pytest.mark.parametrize(
  ('spec', 'message'),
  [
    ('mlp(dropout=1.0)', 'dropout=1.0 must be from 0 to below 1'),
    ("glu(dropout_mask='unit')", "dropout_mask='unit'; valid: row, shared, e"),
    ("glu(bias='sum')", "bias='sum'; valid: none, multiplicative, additive"),
  ],
)
def test_errors(spec, message):
  with pytest.raises(ValueError, match=message):
    registry.build('experts', spec, d_ff=4)
