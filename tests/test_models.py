"""Models: causality, padding, scan and remat, cache, positions, NNX."""

import contextlib
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax import types
from moe_jax.layers import embeddings, positions
from moe_jax.models import factory, pattern, stack
from tests import tiny

B, L, V = 4, 16, 32
DROPLESS = {'moe.capacity_factor': 0.0, 'moe.eval_capacity_factor': 0.0}
T5 = {
  'model.kind': 'encoder_decoder',
  'model.positions': 'relative',
  'data.objective': 'span_corruption()',
}


def batch(kind='decoder', seed=0):
  rng = np.random.default_rng(seed)
  out = {}
  for prefix in ('', 'encoder_') if kind == 'encoder_decoder' else ('',):
    out[f'{prefix}inputs'] = rng.integers(3, V, (B, L)).astype(np.int32)
    # Two segments and a padded tail.
    segment = np.repeat([1, 2, 0], [7, 6, 3])
    position = np.concatenate([np.arange(7), np.arange(6), np.zeros(3)])
    out[f'{prefix}segments'] = np.tile(segment, (B, 1)).astype(np.int32)
    out[f'{prefix}positions'] = np.tile(position, (B, 1)).astype(np.int32)
  return out


def build(cache_length=0, **overrides):
  config = tiny.config(**overrides)
  return config, factory.make(config, V, cache_length=cache_length)


@functools.cache
def params(seed=0, **overrides):
  config, model = build(**overrides)
  b = factory.dummy_batch(config, B, L)
  init = jax.jit(lambda key: nn.unbox(model.init(key, b, train=False)))
  return jax.device_get(init(jax.random.key(seed)))


def logits_and_grads(model, variables, b, train=True):
  def loss(p):
    logits, aux = model.apply({**variables, 'params': p}, b, train=train)
    layers = stack.aux_by_layer(aux['decoder'], model.stacks['decoder'].places)
    total = sum(a.loss for _, a in layers)
    weight = jnp.cos(jnp.arange(logits.size)).reshape(logits.shape)
    real = (b['segments'] > 0)[..., None]
    return (logits * weight * real).sum() + total, logits

  return jax.device_get(
    jax.jit(jax.value_and_grad(loss, has_aux=True))(variables['params'])
  )


@pytest.mark.parametrize(
  'overrides',
  [
    {'model.qk_norm': True, 'model.tied_head': False},
    {'moe.extra_ffn': 'after'},
    pytest.param(T5, marks=pytest.mark.slow),
  ],
  ids=['rope', 'extra', 't5'],
)
def test_segments_and_future_stay_apart(overrides):
  """A token sees its own segment's past, and padding touches nothing."""
  overrides = DROPLESS | overrides
  config, model = build(**overrides)
  kind = config.model.kind
  v = params(**overrides)
  apply = jax.jit(lambda b: model.apply(v, b, train=False)[0])
  b = batch(kind)
  base = np.asarray(apply(b))
  b['inputs'][:, 10:13] += 1  # the end of the second segment
  b['inputs'][:, 13:] += 1  # padding
  changed = np.asarray(apply(b))
  np.testing.assert_array_equal(changed[:, :10], base[:, :10])
  assert np.abs(changed[:, 10:13] - base[:, 10:13]).max() > 1e-3
  if kind == 'encoder_decoder':
    b = batch(kind)
    b['encoder_inputs'][:, 0] += 1  # first encoder segment
    changed = np.asarray(apply(b))
    np.testing.assert_allclose(changed[:, 7:13], base[:, 7:13], atol=1e-6)
    # The encoder looks both ways: its first token moves all that follow.
    assert np.abs(changed[:, :7] - base[:, :7]).max() > 1e-4


def test_packing_does_not_change_a_document():
  """The same tokens alone and behind another document: equal logits."""
  _, model = build(**DROPLESS)
  v = params(**DROPLESS)
  apply = jax.jit(lambda b: model.apply(v, b, train=False)[0])
  b = batch()
  packed = np.asarray(apply(b))[:, 7:13]
  alone = {k: np.roll(x, -7, 1) for k, x in b.items()}
  alone['segments'] = np.where(alone['segments'] == 2, 1, 0)
  np.testing.assert_allclose(np.asarray(apply(alone))[:, :6], packed, atol=1e-5)


FOUR = {'model.num_layers': 4}


@functools.cache
def four_layers():
  v, b = params(**FOUR), batch()
  return v, b, logits_and_grads(build(**FOUR)[1], v, b)


each_change = pytest.mark.parametrize(
  'change',
  [
    pytest.param({'model.scan': False}, marks=pytest.mark.slow),
    pytest.param({'model.remat': 'full'}, marks=pytest.mark.slow),
    {'model.remat': 'dispatch'},
    pytest.param(
      {'model.remat': 'dots', 'model.scan': False}, marks=pytest.mark.slow
    ),
  ],
  ids=str,
)


@each_change
def test_scan_and_remat_start_alike(change):
  other = params(**(FOUR | change))
  jax.tree.map(np.testing.assert_array_equal, params(**FOUR), other)


@each_change
@pytest.mark.slow
def test_scan_and_remat_change_nothing(change):
  """Of the same parameters, with drops: logits, gradients and losses."""
  v, b, want = four_layers()
  got = logits_and_grads(build(**(FOUR | change))[1], v, b)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-4),
    got,
    want,
  )


@pytest.mark.slow
def test_remat_dispatch_runs_no_all_to_all_again():
  """Saved by name, the exchanges of forward serve backward too."""
  from moe_jax.parallel import hlo, mesh as mesh_lib

  found = {}
  wide = {k: jnp.tile(x, (2, 1)) for k, x in batch().items()}
  for remat in ('none', 'full', 'dispatch'):
    config = tiny.config(**{'model.remat': remat})
    mesh = mesh_lib.make(mesh_lib.exact(data=2, expert=4))
    model = factory.make(config, V, mesh)
    v = params()

    def loss(p, model=model):
      logits, _ = model.apply({'params': p}, wide, train=True)
      return (logits**2).sum()

    text = jax.jit(jax.grad(loss)).lower(v['params']).compile().as_text()
    found[remat] = hlo.count_collectives(text)['all-to-all']
  assert found == {'none': 4, 'full': 6, 'dispatch': 4}


@pytest.mark.parametrize(
  'overrides',
  [{}, pytest.param(T5, marks=pytest.mark.slow)],
  ids=['rope', 't5'],
)
def test_cache_decodes_what_the_whole_sequence_gives(overrides):
  overrides = DROPLESS | overrides
  config, model = build(**overrides)
  _, cached = build(cache_length=L, **overrides)
  v = params(**overrides)
  b = batch(config.model.kind)
  ones = np.ones((B, L), np.int32)
  places = np.tile(np.arange(L, dtype=np.int32), (B, 1))
  for prefix in ('', 'encoder_') if 'encoder_inputs' in b else ('',):
    b |= {f'{prefix}segments': ones, f'{prefix}positions': places}
  want = np.asarray(jax.jit(lambda: model.apply(v, b, train=False)[0])())

  @jax.jit
  def call(cache, part):
    (logits, _), made = cached.apply(
      v | cache, part, train=False, mutable=['cache']
    )
    return made, logits

  decoder = ('inputs', 'positions', 'segments')
  cut = lambda a, z: {k: x[:, a:z] if k in decoder else x for k, x in b.items()}
  cache, got = call({}, cut(0, 9))  # a prompt, then one token at a time
  parts = [got]
  for t in range(9, L):
    cache, got = call(cache, cut(t, t + 1))
    parts.append(got)
  np.testing.assert_allclose(np.concatenate(parts, 1), want, atol=2e-5)


def test_rotation_depends_on_distance_alone():
  q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))
  turn = positions.rope(base=100.0).turn
  at = lambda v, place: turn(v, jnp.full((1, 1), place))
  product = lambda a, b: float((at(q, a) * at(k, b)).sum())
  np.testing.assert_allclose(product(9, 4), product(105, 100), rtol=1e-4)
  assert abs(product(9, 4) - product(9, 5)) > 1e-3
  np.testing.assert_allclose(product(3, 3), (q * k).sum(), rtol=1e-5)


@pytest.mark.parametrize('bidirectional', [True, False])
def test_relative_buckets(bidirectional):
  """T5's buckets: exact when near, logarithmic to 128, then one for all."""
  bias = embeddings.RelativeBias(2, bidirectional)
  bucket = lambda d: int(bias._bucket(jnp.asarray(d)))
  half = 16 if bidirectional else 32
  exact = half // 2
  for d in range(exact):  # `d` back
    assert bucket(-d) == d
  assert bucket(-127) == bucket(-4000) == half - 1
  past = [bucket(-d) for d in range(200)]
  assert past == sorted(past) and set(past) == set(range(half))
  if bidirectional:
    assert [bucket(d) for d in (1, 5, 4000)] == [17, 21, 31]
  else:
    assert bucket(3) == 0


@pytest.mark.parametrize(
  ('spec', 'n', 'layers'),
  [
    ('every_2', 6, (1, 3, 5)),
    ('every_4', 12, (3, 7, 11)),
    ('every_4_at_1', 12, (1, 5, 9)),  # Hugging Face's
    ('every_2_at_0', 5, (0, 2, 4)),
    ('all', 3, (0, 1, 2)),
    ('from_3', 5, (3, 4)),
    ('none', 3, ()),
    ((0, 4), 5, (0, 4)),
    ('0,4', 5, (0, 4)),
    ('3', 5, (3,)),
  ],
)
def test_pattern(spec, n, layers):
  sparse = pattern.sparse_layers(spec, n)
  assert tuple(np.flatnonzero(sparse)) == layers
  s = pattern.split(sparse)
  assert s.prefix + s.period * s.repeats + s.suffix == sparse
  assert len(pattern.places(s)) == n


def test_pattern_finds_the_longest_repetition():
  s = pattern.split((False, False, True, False, True, False, True, True))
  assert s.prefix == (False,)
  assert (s.period, s.repeats, s.suffix) == ((False, True), 3, (True,))
  assert pattern.split((False,) * 5) == pattern.Split((), (False,), 5, ())


@pytest.mark.parametrize(
  'spec',
  ['every_0', 'some', 'every_9', 'every_2_at_2', 'from_3', (0, 3), '0,3', '-1'],
)
def test_pattern_errors(spec):
  with pytest.raises(ValueError, match=r'moe\.layers'):
    pattern.sparse_layers(spec, 3)


def test_aux_is_in_layer_order():
  _, model = build(**{'model.num_layers': 5, 'moe.layers': '0,2,4'})
  # Zeros, which need no compilation: every token goes to the first expert.
  init = lambda b: nn.unbox(model.init(jax.random.key(0), b, train=False))
  zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(init, batch()))
  _, aux = jax.jit(lambda b: model.apply(zeros, b, train=True))(batch())
  layers = stack.aux_by_layer(aux['decoder'], model.stacks['decoder'].places)
  assert [i for i, _ in layers] == [0, 2, 4]
  real = int((batch()['segments'] > 0).sum())
  for _, a in layers:
    assert isinstance(a, types.MoEAux)
    assert int(a.load_E.sum()) == real
    assert int(a.cause[types.PADDING]) == B * L - real


def test_aux_of_a_scanned_period_is_cut_by_repeat():
  _, model = build(**FOUR)
  v = jax.tree.map(lambda w: w * 3, params(**FOUR))  # layers that differ
  _, aux = jax.jit(lambda b: model.apply(v, b, train=True))(batch())
  layers = stack.aux_by_layer(aux['decoder'], model.stacks['decoder'].places)
  assert [i for i, _ in layers] == [1, 3]
  loads = np.stack([a.load_E for _, a in layers])
  want = np.asarray(aux['decoder']['period']['block_1'].load_E)
  np.testing.assert_array_equal(loads, want)
  assert (loads[0] != loads[1]).any()


def test_dropout_only_in_training():
  overrides = {'model.dropout': 0.5} | DROPLESS
  _, model = build(**overrides)
  v, b = params(**overrides), batch()
  keys = {'dropout': jax.random.key(0)}
  run = jax.jit(
    lambda train: model.apply(v, b, train=train, rngs=keys)[0],
    static_argnums=0,
  )
  plain = jax.jit(lambda: build(**DROPLESS)[1].apply(v, b, train=False)[0])()
  np.testing.assert_array_equal(run(False), plain)
  assert np.abs(run(True) - plain).max() > 0.1


def draws(jaxpr):
  """Random arrays that a program draws, loops counted once."""
  n = 0
  for e in jaxpr.eqns:
    n += e.primitive.name == 'random_bits'
    for v in e.params.values():
      for inner in v if isinstance(v, tuple) else (v,):
        inner = getattr(inner, 'jaxpr', inner)
        n += draws(inner) if hasattr(inner, 'eqns') else 0
  return n


def test_dropout_is_where_t5_has_it():
  """Input, attention weights, each sub-layer, FFN hidden, output; with an MoE
  its experts' hidden units in place of the FFN's.
  """
  for layers in ('none', 'all'):
    fields = {'model.num_layers': 1, 'moe.layers': layers} | DROPLESS
    drawn = {}
    for rate in (0.0, 0.5):
      _, model = build(**fields, **{'model.dropout': rate})
      v = jax.eval_shape(
        lambda m=model: m.init(jax.random.key(0), batch(), train=False)
      )
      traced = jax.make_jaxpr(
        lambda v, m=model: m.apply(
          nn.unbox(v), batch(), train=True, rngs={'dropout': jax.random.key(0)}
        )[0]
      )(v)
      drawn[rate] = draws(traced.jaxpr)
    assert drawn == {0.0: 0, 0.5: 6}, layers


def test_the_decoder_may_have_fields_of_its_own():
  config = tiny.config(**(T5 | DROPLESS))
  config.unlock()
  config.moe.decoder.update(layers='none', group_size=8)
  model = factory.make(config, V)
  stacks = model.stacks
  assert stacks['encoder'].sparse == (False, True)
  assert stacks['decoder'].sparse == (False, False)
  assert stacks['encoder'].moe.group_size == 16
  config.moe.decoder.layers = 'all'
  moe = factory.make(config, V).stacks['decoder'].moe
  assert moe.group_size == 8


@pytest.mark.parametrize(
  ('overrides', 'own', 'message'),
  [
    ({}, {'group_size': 8}, 'this model has one stack'),
    (T5, {'groups': 8}, "unknown field of moe.decoder 'groups'; .*group_size"),
    (T5, {'num_experts': 8}, "unknown field of moe.decoder 'num_experts'"),
  ],
)
def test_fields_of_the_decoder_are_checked(overrides, own, message):
  config = tiny.config(**overrides)
  config.unlock()
  config.moe.decoder.update(own)
  with pytest.raises(ValueError, match=message):
    factory.make(config, V)


@pytest.mark.slow
def test_nnx_bridge():
  """`flax.nnx.bridge.ToNNX` over a model computes what the model does."""
  from flax import nnx

  _, model = build()
  b = {k: jnp.asarray(v) for k, v in batch().items()}
  # The axes are logical names: NNX is not to shard by them at once.
  eager = getattr(nnx, 'use_eager_sharding', None)
  with eager(False) if eager else contextlib.nullcontext():
    bridged = nnx.bridge.ToNNX(model, rngs=nnx.Rngs(params=0))
    bridged = nnx.bridge.lazy_init(bridged, b, train=False)
    got, _ = nnx.jit(lambda m, b: m(b, train=False))(bridged, b)
  params_ = nnx.to_pure_dict(nnx.state(bridged, nnx.Param))
  want, _ = jax.jit(lambda p, b: model.apply({'params': p}, b, train=False))(
    params_, b
  )
  np.testing.assert_allclose(got, want, atol=1e-6)
