"""In bfloat16 gradients are summed over rows and devices in float32.

256 + 7 x 1 by hand: bfloat16 has no number between 256 and 258, so that in it
the sum may stay 256; 263 rounds to 264.
"""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax import registry, types
from moe_jax.layers import embeddings, heads, linen, mlp, moe
from moe_jax.parallel import axes as axes_lib, mesh as mesh_lib
from moe_jax.seating import seat as seating
from tests import methods

D, BF16 = 8, jnp.bfloat16
ONE = axes_lib.make(mesh_lib.exact())
# Each row and each column has 256 once, and 1 seven times.
DY = np.ones((D, D)) + 255 * np.eye(D)
MLP = "mlp(bias=True, activation='relu')"
GLU = "glu(bias='multiplicative', activation='relu')"
BIASES = {'bi': 0.0, 'bo': 0.0, 'bias': 1.0}
SORTED = "gather_reduce(matmul='ragged_dot')"
OWN = {'gather_reduce()': SORTED}  # the other products are in other rows
DISPATCHES = [OWN.get(r.spec, r.spec) for r in methods.rows('dispatch')]


def params(spec, E):
  """Experts that give back their row of ones: units and biases that do not
  change it."""
  eye = jnp.tile(jnp.eye(D, dtype=BF16), (E, 1, 1))
  kind = registry.build('experts', spec, d_ff=D)
  one = lambda k: jnp.full((E, D), BIASES[k], BF16) if k in BIASES else eye
  return kind, {k: one(k) for k in kind.axes}


def gradients(dispatch, kind, w, token_N, expert_N, weight_N, dy_TD, **routing):
  """Of the experts, the tokens (all ones) and the edges' weights."""
  E, T = w['wo'].shape[0], len(dy_TD)
  as_int = lambda v: jnp.asarray(v, jnp.int32)
  run = registry.build('dispatch', dispatch)

  def loss(w, x_TD, weight_N):
    r = types.Routing(
      as_int(token_N), as_int(expert_N), weight_N, num_experts=E, **routing
    )
    seated = seating.seat(r, ((len(token_N), E),))
    seated = jax.tree.map(lambda v: v[None], seated)
    y_GTD, _ = run(kind, w, x_TD[None], seated, ONE, None)
    return (y_GTD[0].astype(jnp.float32) * dy_TD).sum()

  grad = jax.jit(jax.grad(loss, (0, 1, 2)))
  weight_N = jnp.asarray(weight_N, jnp.float32)
  return jax.device_get(grad(w, jnp.ones((T, D), BF16), weight_N))


@pytest.mark.parametrize(
  ('dispatch', 'spec'),
  [(d, MLP) for d in DISPATCHES] + [('scatter()', GLU)],
)
def test_gradients_of_experts_sum_over_rows_in_float32(dispatch, spec):
  """Eight rows at the first expert, whose every gradient is 256 + 7 x 1."""
  kind, w = params(spec, 2)
  edges = np.arange(D), np.zeros(D), np.ones(D)
  by_w, by_x, by_weight = gradients(
    dispatch, kind, w, *edges, DY, choices=1, weight_on='output'
  )
  for name, g in by_w.items():
    np.testing.assert_array_equal(g[0], np.full_like(g[0], 264), name)
    assert not g[1].any(), name
  twice = 2 if spec == GLU else 1  # a product of two ones
  np.testing.assert_array_equal(by_x, twice * DY)
  np.testing.assert_array_equal(by_weight, [263] * D)


@pytest.mark.parametrize(
  'dispatch', ['dense()', SORTED, 'lookup()', 'scatter()']
)
def test_gradients_of_tokens_and_of_weights_on_the_input(dispatch):
  """One token's edges to eight experts, stored as expert choice does; and a
  weight that multiplies a row before its expert."""
  kind, w = params("mlp(activation='relu')", D)
  edges = np.zeros(D), np.arange(D), np.r_[256, np.ones(D - 1)]
  _, by_x, by_weight = gradients(
    dispatch, kind, w, *edges, np.ones((1, D)), weight_on='output'
  )
  np.testing.assert_array_equal(by_x, np.full((1, D), 264))
  np.testing.assert_array_equal(by_weight, [D] * D)
  _, by_x, by_weight = gradients(
    dispatch, kind, w, *edges, DY[:1], weight_on='input'
  )
  np.testing.assert_array_equal(by_weight, [263] * D)


def test_gradients_of_dense_ffns_and_embeddings():
  """By XLA's own sharding: sums over all tokens, and over those of an id."""
  kind, w = params(MLP, 1)
  w = {k: v[0].astype(jnp.float32) for k, v in w.items()}
  table = {'params': {'table': jnp.ones((3, D))}}
  embed = embeddings.Embedding(3, D, dtype=BF16)
  ffn = mlp.FFN(kind, dtype=BF16)
  dot = lambda y: (y.astype(jnp.float32) * DY.reshape(2, 4, D)).sum()

  @jax.jit
  @jax.grad
  def both(w):
    y = ffn(w[0], jnp.ones((2, 4, D)), train=True)
    return dot(y) + dot(embed.apply(w[1], jnp.ones((2, 4), jnp.int32)))

  by_w, by_table = jax.device_get(both((w, table)))
  for name, g in by_w.items():
    np.testing.assert_array_equal(g, np.full_like(g, 263), name)
  rows_ = by_table['params']['table']
  np.testing.assert_array_equal(rows_, [[0] * D, [263] * D, [0] * D])


def test_gradient_of_the_shared_experts_gate():
  """A sum over the width, through a product with one number a token."""
  kind = registry.build('experts', "mlp(activation='relu')", d_ff=D)
  eye = jnp.eye(D)
  m = linen.MoE(
    moe.MoE(
      num_experts=1,
      router=registry.build('routers', 'hash()'),
      experts=kind,
      dispatch=registry.build('dispatch', 'scatter()'),
      group_size=1,
      dense_branch='gated',
      dense=kind,
      dtype=BF16,
    )
  )
  v = {
    'router': {},
    'experts': {'wi': 0 * eye[None], 'wo': eye[None]},
    'dense': {'ffn': {'wi': eye, 'wo': eye}},
  }
  x, ids = jnp.ones((1, 1, D)), jnp.ones((1, 1), jnp.int32)

  def loss(gate):
    params = {'params': v | {'dense_gate': gate}}
    y, _, _ = m.apply(params, x, types.Tokens(ids=ids), train=False)
    return (y.astype(jnp.float32) * DY[0]).sum()

  got = jax.jit(jax.grad(loss))(jnp.zeros((D, 1)))
  # Half of the branch's ones; the slope of the sigmoid is a quarter.
  np.testing.assert_array_equal(got, np.full((D, 1), 263 / 4))


def test_gradients_of_attention():
  """All ones: so is what is attended to; a key's value meets all queries."""
  layer = heads.Attention(
    heads.Full(num_heads=1, d_head=D, positions='none'), dtype=BF16
  )
  eye = jnp.eye(D)
  w = {k: eye[:, None] for k in ('query', 'key', 'value')}
  w['out'] = eye[None]
  x, mask = jnp.ones((2, 4, D)), jnp.ones((2, 4, 4), bool)

  @jax.grad
  def gradients(w):
    y = layer.apply({'params': w}, x, x, mask)
    return (y.astype(jnp.float32) * DY.reshape(2, 4, D)).sum()

  traced = jax.jit(gradients).trace(w)
  got = traced.lower().compile()(w)['out']
  np.testing.assert_array_equal(got[0], np.full((D, D), 263))
  # Products of the shape of weights are their gradients.
  text = traced.lower().as_text()
  products = re.findall(
    r'dot_general.*-> tensor<(8x1x8|1x8x8|8x8x1)x(\w+)>', text
  )
  assert [dtype for _, dtype in products] == ['f32'] * 4


COLLECTIVE = re.compile(
  r'stablehlo\.(all_reduce|reduce_scatter|all_gather)".*?'
  r': \(tensor<([\dx]+)x(\w+)>\) -> ',
  re.DOTALL,
)
E_, F, G, T = 4, 12, 2, 10  # experts, hidden width; groups of a device, tokens


def collectives(dispatch, experts):
  """(kind, shape, dtype) in the StableHLO of a layer's gradients, of 16
  devices that need not exist."""
  sizes = mesh_lib.exact(data=2, fsdp=2, expert=2, model=2)
  m = linen.MoE(
    moe.MoE(
      num_experts=E_,
      router=registry.build('routers', 'switch(selective_precision=False)'),
      experts=registry.build('experts', experts, d_ff=F),
      dispatch=registry.build('dispatch', dispatch),
      group_size=T,
      mesh=mesh_lib.abstract(sizes),
      dtype=BF16,
    )
  )
  x = jax.ShapeDtypeStruct((8 * G, T, D), BF16)
  init = lambda k, x: nn.unbox(m.init(k, x, train=False))
  v = jax.eval_shape(init, jax.random.key(0), x)

  def loss(v, x):
    return m.apply(v, x, train=True)[0].astype(jnp.float32).sum()

  traced = jax.jit(jax.grad(loss, (0, 1))).trace(v, x)
  text = traced.lower(lowering_platforms=('cpu',)).as_text()
  return [
    (kind, tuple(map(int, shape.split('x'))), dtype)
    for kind, shape, dtype in COLLECTIVE.findall(text)
  ]


@pytest.mark.parametrize(
  ('dispatch', 'experts'),
  [
    ('scatter()', MLP),
    ('dense()', MLP),
    ("gather_reduce(matmul='loop')", 'autonomy(d_low=6)'),
    ('scatter()', 'shared_low_rank(rank=6, bias=True)'),
  ],
)
def test_gradients_of_parameters_cross_devices_in_float32(dispatch, experts):
  """Weights are gathered in bfloat16, their gradients scattered and summed in
  float32; what crosses in bfloat16 are tokens."""
  found = collectives(dispatch, experts)
  kind = registry.build('experts', experts, d_ff=F)
  w = jax.eval_shape(lambda: kind.init(jax.random.key(0), E_, D))
  parts = {'expert': 2, 'embed': 2, 'mlp': 2, None: 1}
  for name, axes in kind.axes.items():
    shard = tuple(n // parts[a] for n, a in zip(w[name].shape, axes))
    assert ('all_reduce', shard, 'f32') in found, name
    if 'embed' in axes:
      whole = tuple(n * (1 + (a == 'embed')) for n, a in zip(shard, axes))
      assert ('all_gather', shard, 'bf16') in found, name
      assert ('reduce_scatter', whole, 'f32') in found, name
  assert ('all_reduce', (D, E_), 'f32') in found  # the router
  sums = {f[1:] for f in found if f[0] != 'all_gather' and f[2] == 'bf16'}
  own, gathered = (G, T, D), (2 * G, T, D)
  assert sums - {(gathered, 'bf16')} == {(own, 'bf16')}
