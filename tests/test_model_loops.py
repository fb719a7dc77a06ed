"""Whole models against NumPy loops over layers and queries."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.layers import embeddings
from moe_jax.models import factory
from tests import reference_models as loops, tiny

V = 12
FIELDS = {
  'model.d_model': 8,
  'model.d_head': 4,
  'model.d_ff': 6,
  'moe.d_ff': 6,
  'moe.dispatch': 'dense()',
  'moe.capacity_factor': 0.0,
  'moe.eval_capacity_factor': 0.0,
}
# An MoE layer and a dense one, three times, and one more: a real period.
SEVEN = {'model.num_layers': 7, 'moe.layers': '0,2,4,6'}


def layer(stack, l):
  """Of SEVEN, by hand: where layer l's parameters are."""
  if l == 6:
    return stack['suffix_0']
  return jax.tree.map(lambda v: v[l // 2], stack['period'][f'block_{l % 2}'])


def make(**overrides):
  config = tiny.config(**FIELDS | overrides)
  return config, factory.make(config, V)


def drawn(model, batch):
  """Parameters with gains around 1 and decided routers, on the host."""
  init = lambda: nn.unbox(model.init(jax.random.key(0), batch, train=False))
  rng = np.random.default_rng(1)

  def one(path, v):
    name = jax.tree_util.keystr(path)
    if 'scale' in name:
      return (1 + 0.4 * rng.normal(size=v.shape)).astype(np.float32)
    # Kernels of a variance of 1 / 4: each layer changes the next one's choices.
    scale = 2.0 if 'router' in name else 1.0 if 'table' in name else 0.5
    return scale * rng.normal(size=v.shape).astype(np.float32)

  shapes = jax.eval_shape(init)['params']
  return jax.tree_util.tree_map_with_path(one, shapes)


def row(L, seed, segments=()):
  """A batch of one row: documents one behind the other, then padding."""
  ids = np.random.default_rng(seed).integers(1, V, L)
  lengths = [*segments, L - sum(segments)]
  segment = np.repeat([*range(1, len(segments) + 1), 0], lengths)
  segment = segment if segments else np.ones(L, int)
  position = np.concatenate([np.arange(n) for n in lengths])
  return {'inputs': ids, 'positions': position, 'segments': segment}


def device(b):
  return {k: jnp.asarray(v, jnp.int32)[None] for k, v in b.items()}


def close(got, want, real=slice(None)):
  """To 1e-5 of the largest; padding sees what it likes."""
  want = want[real]
  scale = np.abs(want).max()
  assert scale > 0.5
  np.testing.assert_allclose(got[real], want, atol=1e-5 * scale, rtol=0)


def as_float64(params):
  return jax.tree.map(lambda v: np.asarray(v, np.float64), params)


def test_scan_is_a_loop_over_layers():
  """Rotary positions, norms of queries and keys, gains that are not 1, a head
  of its own; packed documents. Logits of seven layers, six of them scanned."""
  _, model = make(**SEVEN, **{'model.tied_head': False})
  b = row(12, 0, (7, 4))
  params = drawn(model, device(b))
  got = jax.jit(lambda p, b: model.apply({'params': p}, b, train=False)[0])(
    params, device(b)
  )[0]
  p = as_float64(params)
  layers = [layer(p['decoder'], l) for l in range(7)]
  x = loops.stack(
    layers,
    p['decoder']['final_norm'],
    p['embedding']['table'][b['inputs']],
    *(True, b['positions'], b['segments']),
  )
  close(got, x @ p['embedding']['head'], b['segments'] > 0)
  # Every layer and its gains are in what is compared.
  assert {'query_norm', 'key_norm'} < set(layers[0]['attention'])
  assert ['ffn' in l for l in layers] == [False, True] * 3 + [False]


@pytest.mark.parametrize('where', ['before', 'after', 'parallel'])
def test_an_extra_ffn_is_stacked_as_asked(where):
  """In 'parallel' it reads the residual that the MoE reads."""
  _, model = make(
    **{
      'model.num_layers': 1,
      'moe.layers': 'all',
      'moe.extra_ffn': where,
      'model.qk_norm': False,
    }
  )
  b = row(5, 1)
  params = drawn(model, device(b))
  got = jax.jit(lambda p, b: model.apply({'params': p}, b, train=False)[0])(
    params, device(b)
  )[0]
  p = as_float64(params)
  run = lambda extra: loops.stack(
    [p['decoder']['prefix_0']],
    p['decoder']['final_norm'],
    p['embedding']['table'][b['inputs']],
    *(True, b['positions'], b['segments']),
    extra=extra,
  )
  head = p['embedding']['table'].T * 8**-0.5
  close(got, run(where) @ head)
  for other in {'before', 'after', 'parallel', 'none'} - {where}:
    assert np.abs(run(other) - run(where)).max() > 0.1, other


def test_norms_behind_and_factors_between():
  """Norms of what sub-layers give, another epsilon, four factors."""
  _, model = make(
    **{
      'model.num_layers': 2,
      'moe.layers': '1',
      'model.qk_norm': False,
      'model.norm_at': 'output',
      'model.norm_eps': 0.3,
      'model.residual_scale': 0.7,
      'model.embedding_scale': 3.0,
      'model.logit_scale': 0.4,
    }
  )
  b = row(5, 2)
  params = drawn(model, device(b))
  got = jax.jit(lambda p, b: model.apply({'params': p}, b, train=False)[0])(
    params, device(b)
  )[0]
  p = as_float64(params)
  norm = lambda x, q: loops.rms_norm(x, q, 0.3)
  x = 3.0 * p['embedding']['table'][b['inputs']]
  for name in ('prefix_0', 'prefix_1'):
    q = p['decoder'][name]
    y = loops.attention(
      q['attention'], x, x, lambda t, s: s <= t, b['positions']
    )
    x = x + 0.7 * norm(y, q['attention_norm'])
    if 'ffn' in q:
      y = norm(loops.ffn(q['ffn']['ffn'], x), q['ffn_norm'])
    else:
      y = norm(loops.top_1(q['moe'], x), q['moe_norm'])
    x = x + 0.7 * y
  head = 0.4 * p['embedding']['table'].T
  close(got, norm(x, p['decoder']['final_norm']) @ head)


def test_relative_positions_past_the_furthest_bucket():
  """A T5 of 140 tokens a side: both directions in the encoder, one in the
  decoder; cross-attention has no positions."""
  L = 140
  _, model = make(
    **{
      'model.kind': 'encoder_decoder',
      'model.positions': 'relative',
      'model.qk_norm': False,
      'model.num_layers': 1,
      'moe.layers': 'none',
      'moe.group_size': L,
      'data.objective': 'span_corruption()',
    }
  )
  decoder, encoder = row(L, 2), row(L, 3, (136, 2))
  decoder['segments'][:] = 1
  b = decoder | {f'encoder_{k}': v for k, v in encoder.items()}
  params = drawn(model, device(b))
  got = jax.jit(lambda p, b: model.apply({'params': p}, b, train=False)[0])(
    params, device(b)
  )[0]
  p = as_float64(params)
  table = p['embedding']['table']
  run = lambda name, b, causal, **options: loops.stack(
    [p[name]['prefix_0']],
    p[name]['final_norm'],
    table[b['inputs']],
    *(causal, b['positions'], b['segments']),
    table=p[name]['relative']['table'],
    **options,
  )
  encoded = run('encoder', encoder, False)
  visible = lambda t, s: encoder['segments'][s] == decoder['segments'][t]
  out = run('decoder', decoder, True, cross=(encoded, visible))
  close(got, out @ table.T * 8**-0.5)


@pytest.mark.parametrize('both_ways', [True, False])
@pytest.mark.parametrize(('buckets', 'furthest'), [(32, 128), (8, 20)])
def test_buckets_are_those_of_whole_numbers(both_ways, buckets, furthest):
  """At every distance, those where a logarithm is a whole number too."""
  bias = embeddings.RelativeBias(1, both_ways, buckets, furthest)
  distance = np.arange(-300, 301)
  want = [loops.bucket(int(d), both_ways, buckets, furthest) for d in distance]
  got = jax.jit(bias._bucket)(jnp.asarray(distance))
  np.testing.assert_array_equal(got, want)
  if buckets == 32 and both_ways:  # as printed by other codebases
    first = [int(np.argmax(np.asarray(want)[300::-1] == k)) for k in range(16)]
    assert first == [*range(8), 8, 12, 16, 23, 32, 46, 64, 91]
