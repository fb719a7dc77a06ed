"""Models in training: what is random, and that it leaks and repeats nothing."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from moe_jax import registry, types
from moe_jax.layers import heads, linen, moe
from moe_jax.models import factory, records, stack
from moe_jax.routers import base as routers
from tests import test_models, tiny

B, L, V, CUT = 2, 12, 32, 7
KEYS = ('params', 'dropout', 'router')
T5 = {
  'model.kind': 'encoder_decoder',
  'model.positions': 'relative',
  'model.qk_norm': False,
  'data.objective': 'span_corruption()',
}
ONE_LAYER = {
  'model.num_layers': 1,
  'moe.layers': 'all',
  'moe.group_size': L,
  'moe.capacity_factor': 0.0,
  'moe.eval_capacity_factor': 0.0,
  'moe.balance': (),
}


def batch(seed=0):
  """Two documents, their encoder sides beside them."""
  rng = np.random.default_rng(seed)
  segment = np.repeat([1, 2], [CUT, L - CUT])
  place = np.concatenate([np.arange(CUT), np.arange(L - CUT)])
  tile = lambda v: np.tile(np.asarray(v, np.int32), (B, 1))
  out = {}
  for prefix in ('', 'encoder_'):
    inputs = rng.integers(3, V, (B, L)).astype(np.int32)
    out |= {f'{prefix}inputs': inputs, f'{prefix}segments': tile(segment)}
    out[f'{prefix}positions'] = tile(place)
  return out


def drawn(init):
  """Normal parameters, without compiling the initialisers."""
  rng = np.random.default_rng(0)
  draw = lambda v: 0.5 * rng.normal(size=v.shape).astype(np.float32)
  return jax.tree.map(
    draw, jax.eval_shape(lambda: nn.unbox(init(jax.random.key(0))))
  )


@pytest.mark.parametrize('path', ['mask', 'fused'])
def test_the_past_ignores_the_future_under_one_key(path):
  """Attention with dropout has a path of its own, which masks by itself."""
  rate = {'mask': 0.5, 'fused': 0.0}[path]
  config = tiny.config(
    **ONE_LAYER | T5,
    **{
      'model.dropout': rate,
      'moe.experts': 'mlp(dropout=0.5)',
      'moe.router': 'switch(jitter=0.3)',
      'moe.dispatch': 'dense()',
    },
  )
  model = factory.make(config, V)
  b = batch()
  v = drawn(lambda k: model.init(k, b, train=False))

  @jax.jit
  def run(b, key):
    rngs = {'dropout': key, 'router': jax.random.fold_in(key, 1)}
    return model.apply(v, b, train=True, rngs=rngs)[0]

  key = jax.random.key(1)
  base = np.asarray(run(b, key))
  differ = lambda a, part: np.abs(np.asarray(a) - base)[:, part].max()
  past, future = slice(0, CUT), slice(CUT, None)
  one = b | {'segments': np.ones_like(b['segments'])}
  whole = np.asarray(run(one, key))
  later = one | {'inputs': one['inputs'].copy()}
  later['inputs'][:, CUT:] += 1  # self-attention, in one document
  changed = np.asarray(run(later, key))
  np.testing.assert_array_equal(changed[:, past], whole[:, past])
  assert np.abs(changed - whole)[:, future].max() > 1e-2
  other = b | {'encoder_inputs': b['encoder_inputs'].copy()}
  other['encoder_inputs'][:, CUT:] += 1  # what only the second document sees
  changed = run(other, key)
  assert differ(changed, past) < 1e-6 < 1e-2 < differ(changed, future)
  assert differ(run(b, jax.random.key(2)), past) > 1e-2


@pytest.mark.parametrize(
  ('fields', 'drawn'),
  [
    ({'moe.dense_branch': 'shared'}, 7),
    ({'moe.dense_branch': 'gated'}, 7),
    ({'moe.extra_ffn': 'before'}, 8),
    ({'moe.extra_ffn': 'after'}, 8),
    ({'moe.extra_ffn': 'parallel'}, 8),
    (T5, 6 + 8),
  ],
)
def test_every_branch_draws(fields, drawn):
  """Input, attention weights, its sub-layer, experts, theirs, output; with
  another branch its hidden units, and what is a sub-layer draws once more: so
  do a decoder's cross-attention and its weights."""
  config = tiny.config(**ONE_LAYER | fields | {'model.dropout': 0.5})
  model = factory.make(config, V)
  init = lambda: nn.unbox(model.init(jax.random.key(0), batch(), train=False))
  v, rngs = jax.eval_shape(init), {'dropout': jax.random.key(0)}
  run = lambda v: model.apply(v, batch(), train=True, rngs=rngs)[0]
  assert test_models.draws(jax.make_jaxpr(run)(v).jaxpr) == drawn


def test_shared_experts_drop_for_every_token():
  """Units of ones, half of them dropped and the others doubled, by token."""
  F, eye = 32, jnp.eye(32)
  kind = registry.build('experts', 'mlp(dropout=0.5)', d_ff=F)
  m = linen.MoE(
    moe.MoE(
      num_experts=1,
      router=registry.build('routers', 'random()'),
      experts=kind,
      dispatch=registry.build('dispatch', 'dense()'),
      group_size=L,
      dense_branch='shared',
      dense=kind,
    )
  )
  v = {
    'experts': {'wi': eye[None], 'wo': 0 * eye[None]},
    'dense': {'ffn': {'wi': eye, 'wo': eye}},
    'router': {},
  }

  @functools.partial(jax.jit, static_argnums=0)
  def run(train, seed):
    rngs = {k: jax.random.key(seed) for k in ('router', 'dropout')}
    x = jnp.ones((B, L, F))
    return m.apply({'params': v}, x, train=train, rngs=rngs)[0]

  np.testing.assert_array_equal(run(False, 0), 1)
  draws = np.stack([run(True, seed) for seed in range(2)]).reshape(-1, F)
  assert set(np.unique(draws)) == {0, 2}
  assert len(np.unique(draws, axis=0)) == len(draws)
  np.testing.assert_allclose(draws.mean(), 1, atol=0.1)


# An MoE layer and a dense one, three times, and one more.
LAYERS = (True, False, True, False, True, False, True)


def layered(fill):
  """A stack's tree from fill(layer) trees: by hand, where LAYERS puts them."""
  stacked = lambda *v: jnp.stack(v)
  period = {
    f'block_{i}': jax.tree.map(stacked, *map(fill, range(i, 6, 2)))
    for i in (0, 1)
  }
  return {'period': period, 'suffix_0': fill(6)}


def by_layer(tree, l):
  if l == 6:
    return tree['suffix_0']
  return jax.tree.map(lambda v: v[l // 2], tree['period'][f'block_{l % 2}'])


@struct.dataclass
class Noted(routers.Router):
  """A drawn expert of four, and one, with weight 0, that names the layer."""

  def init(self, key, E, D):
    return {}

  def experts_per_token(self, E):
    return 2.0

  def __call__(self, params, x_TD, ctx):
    T = len(x_TD)
    key = routers.noise_key(ctx, 'sample')
    expert_T = jax.random.randint(key, (T,), 0, 4)
    expert_TK = jnp.stack([expert_T, jnp.full(T, 4 + ctx.layer)], 1)
    weight_TK = jnp.tile(jnp.array([1.0, 0.0]), (T, 1))
    return routers.Chosen(expert_TK, ctx).routing(weight_TK)


def test_no_two_layers_repeats_or_groups_share_their_draws():
  """Every layer adds 2 ** layer times its mask to a stream of zeros beside a
  one, from which the masks are read; what the router draws is recorded.
  """
  F = 24
  D = 1 + F
  kind = registry.build('experts', 'mlp(bias=True, dropout=0.5)', d_ff=F)
  dense = records.Layer(heads.Full(num_heads=1, d_head=2), kind)
  sparse = dataclasses.replace(
    dense,
    moe=moe.MoE(
      num_experts=8,
      router=Noted(),
      experts=kind,
      dispatch=registry.build('dispatch', 'dense()'),
      group_size=L,
      capacity_factor=None,
      eval_capacity_factor=None,
      record=True,
    ),
  )
  layers = tuple(sparse if s else dense for s in LAYERS)
  model = stack.Stack(records.StackConfig(layers, d_model=D))
  x = jnp.zeros((B, L, D)).at[..., 0].set(1)
  ones = jnp.ones((B, L), jnp.int32)
  place = jnp.tile(jnp.arange(L), (B, 1))

  def call(method, first, **rngs):
    return getattr(model, method)(first, x, place, ones, train=True, **rngs)

  params = drawn(lambda k: call('init', dict.fromkeys(KEYS, k)))['params']

  def fill(l):
    """Attention gives 0; hidden units 1 before dropout, 2 ** l / 2 behind."""
    p = jax.tree.map(jnp.zeros_like, by_layer(params, l))
    ffn = p['moe']['experts'] if LAYERS[l] else p['ffn']['ffn']
    ffn['bi'] += 1
    ffn['wo'] += 2.0 ** (l - 1) * jnp.eye(F, D, 1)
    return p

  tree = layered(fill) | {'final_norm': {'scale': jnp.ones(D)}}

  @jax.jit
  def run(seed):
    keys = {k: jax.random.key(seed) for k in KEYS}
    out, aux = call('apply', {'params': tree}, rngs=keys)
    is_aux = lambda a: isinstance(a, types.MoEAux)
    record = jax.tree.map(lambda a: a.record, aux, is_leaf=is_aux)
    return out[..., 1:] / out[..., :1], record

  found = []
  for seed in (1, 2):
    total, record = jax.device_get(run(seed))
    number = np.rint(total).astype(int)
    np.testing.assert_allclose(total, number, atol=1e-3)
    masks = np.stack([number >> l & 1 for l in range(7)])  # [7, B, L, F]
    np.testing.assert_allclose(masks.mean((1, 2, 3)), 0.5, atol=0.1)
    edges = [by_layer(record, l)['expert'] for l in range(7) if LAYERS[l]]
    drawn_, named = np.split(np.stack(edges), 2, -1)  # [4, B, L] each
    np.testing.assert_array_equal(named[:, 0, 0], [4, 5, 6, 7])
    found.append((masks.reshape(-1, F), drawn_.reshape(-1, L)))
  # Of every token in every group, layer and repeat; and under another key.
  for draws, count in zip(map(np.concatenate, zip(*found)), (7 * B * L, 4 * B)):
    assert len(np.unique(draws, axis=0)) == len(draws) == 2 * count
