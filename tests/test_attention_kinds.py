"""Kinds of attention against loops; caches whose rows have their own pace."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.layers import attention, attentions, frequencies
from moe_jax.models import factory
from tests import attention_loops as loops, tiny

L, D = 9, 12
YARN = dict(factor=4.0, original_length=8)
causal = lambda t, s: s <= t


def spec(name, **values):
  inner = ', '.join(f'{k}={v!r}' for k, v in values.items())
  return f'{name}({inner})'


def rope(**kw):
  return functools.partial(loops.turn, **kw)


yarn = functools.partial(loops.yarn, **YARN, fast=32.0, slow=1.0)
llama3 = functools.partial(
  loops.llama3, factor=4.0, original_length=40, low=1.0, high=4.0
)
# Call string, what the loop takes, what the loop turns by.
HEADS = {
  'gqa': ("full(kv_heads=2, bias='qkv', qk_norm='head')", {'norm': 'head'}),
  'mqa': ("full(kv_heads=1, bias='all', scale=0.7)", {'scale': 0.7}),
  'width': ("full(qk_norm='width', clip=0.5)", {'norm': 'width', 'clip': 0.5}),
  'sinks': ('window(size=3, kv_heads=2, sinks=True)', {}),
  'chunk': (
    "chunk(size=4, qk_norm='turned', kv_heads=2, "
    "positions='rope(base=50.0, interleaved=True)')",
    {'norm': 'turned', 'turned': rope(base=50.0, interleaved=True)},
  ),
  'far': (
    "full(temperature=(3.0, 0.5), qk_norm='turned', positions='none')",
    {'temperature': (3, 0.5), 'turned': None},
  ),
  'share': (
    "full(positions='rope(base=30.0, share=0.5)')",
    {'turned': rope(base=30.0, width=4)},
  ),
  'yarn': (
    spec('full', positions=spec('rope', scaling=spec('yarn', **YARN))),
    {
      'turned': rope(
        base=1e4,
        angle=functools.partial(yarn, truncate=True),
        by=0.1 * np.log(4) + 1,
      )
    },
  ),
  'llama3': (
    'full(positions=\'rope(base=100.0, scaling="llama3(factor=4.0, '
    'original_length=40)")\')',
    {'turned': rope(base=100.0, angle=llama3)},
  ),
}
VISIBLE = {
  'sinks': lambda t, s: s <= t < s + 3,
  'chunk': lambda t, s: s <= t and s // 4 == t // 4,
}
MLA = {
  'low rank': 'mla(kv_rank=5, d_nope=6, d_rope=4, d_value=3, q_rank=7)',
  'whole': 'mla(kv_rank=5, d_nope=2, d_rope=4, d_value=7, scale=0.4)',
}


def made(call):
  kind = attentions.build(call, num_heads=4, d_head=8)
  return kind, kind.module(kind, causal=True)


@functools.lru_cache
def case(call):
  """Inputs, parameters (all of them random) and the output of a kind."""
  kind, layer = made(call)
  x = jax.random.normal(jax.random.key(0), (1, L, D))
  at = jnp.arange(L)
  mask = at[None] <= at[:, None]
  near = kind.near(at[None, :, None], at[None, None])
  mask = mask[None] if near is None else mask & near
  v = nn.unbox(layer.init(jax.random.key(1), x, x, mask, at[None]))
  leaves, tree = jax.tree.flatten(v)
  keys = jax.random.split(jax.random.key(2), len(leaves))
  leaves = [
    a + 0.3 * jax.random.normal(k, a.shape) for k, a in zip(keys, leaves)
  ]
  v = jax.tree.unflatten(tree, leaves)
  y = layer.apply(v, x, x, mask, at[None])
  params = jax.tree.map(lambda a: np.asarray(a, np.float64), v['params'])
  return params, np.asarray(x[0], np.float64), y[0]


@pytest.mark.parametrize('name', HEADS)
def test_heads_are_what_loops_say(name):
  call, changes = HEADS[name]
  params, x, got = case(call)
  want = loops.heads(
    params,
    x,
    VISIBLE.get(name, causal),
    **{'turned': rope(base=1e4)} | changes,
  )
  np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize('name', MLA)
def test_latent_attention_is_what_a_loop_says(name):
  params, x, got = case(MLA[name])
  kind = made(MLA[name])[0]
  want = loops.latent(params, x, rope(base=1e4), kind.d_nope, kind.scale)
  np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize(
  ('base', 'original_length', 'fast', 'truncate'),
  [
    (500.0, 8, 1.5, True),
    (500.0, 8, 1.5, False),
    # Its slowest pair still turns: the ramp would end behind the last one.
    (3.0, 400, 32.0, True),
  ],
)
def test_yarn_slows_what_turns_seldom(base, original_length, fast, truncate):
  """At more pairs, where some are between."""
  J, fields = 32, dict(factor=4.0, original_length=original_length)
  own = base ** (-np.arange(0, J, 2) / J)
  scaling = frequencies.Yarn(**fields, beta_fast=fast, truncate=truncate)
  want = [
    loops.yarn(j, J, base, **fields, fast=fast, slow=1.0, truncate=truncate)
    for j in range(J // 2)
  ]
  got = scaling.frequencies(own, base)
  np.testing.assert_allclose(got, want, rtol=1e-12)
  kept = np.isclose(got, own)
  assert kept.any() and not kept.all()


slow = lambda name: pytest.param(HEADS[name][0], marks=pytest.mark.slow)
CACHED = [
  HEADS['sinks'][0],
  MLA['low rank'],
  *map(slow, ('gqa', 'chunk', 'far')),
]


@pytest.mark.parametrize('call', CACHED)
def test_rows_of_a_cache_go_at_their_own_pace(call):
  """Prompts of 3, 7 and 5 tokens, then five more: as whole rows give it."""
  config = tiny.config(
    **{
      'model.attention': (call,),
      'model.num_layers': 1,
      'moe.layers': 'none',
      'model.num_heads': 4,
      'model.d_head': 8,
    }
  )
  lengths, B, more = np.array([3, 7, 5]), 3, 5
  ids = np.asarray(jax.random.randint(jax.random.key(0), (B, 12), 1, 40))
  position = np.tile(np.arange(12), (B, 1))
  ones = np.ones((B, 12), int)
  whole = {'inputs': ids, 'positions': position, 'segments': ones}
  model = factory.make(config, 40)
  v = nn.unbox(model.init(jax.random.key(1), whole, train=False))
  want = np.asarray(model.apply(v, whole, train=False)[0])
  cached = factory.make(config, 40, cache_length=12)

  @jax.jit
  def call_it(cache, batch):
    (logits, _), new = cached.apply(
      v | cache, batch, train=False, mutable=['cache']
    )
    return new, logits

  real = np.arange(7) < lengths[:, None]
  prompt = {k: np.where(real, a[:, :7], 0) for k, a in whole.items()}
  cache, got = call_it({}, prompt)
  for b, n in enumerate(lengths):
    np.testing.assert_allclose(got[b, :n], want[b, :n], atol=2e-5)
  rows = np.arange(B)
  for t in range(more):
    at = lengths + t
    one = {k: a[rows, at][:, None] for k, a in whole.items()}
    cache, got = call_it(cache, one)
    np.testing.assert_allclose(got[:, 0], want[rows, at], atol=2e-5)


@pytest.mark.parametrize(
  'call, message',
  [
    ('full(kv_heads=3)', 'kv_heads=3 must divide num_heads=4'),
    ("full(kv_heads='a')", "kv_heads='a' must be at least 0"),
    ('mla(d_nope=2)', "'mla': without 'kv_rank', 'd_rope', 'd_value'"),
    ("full(bias='out')", "unknown bias 'out'; valid: all, none, qkv"),
    ("full(qk_norm='late')", "unknown qk_norm 'late'"),
    ('full(temperature=(0.0, 1.0))', 'a floor above 0'),
    ('chunk(size=0)', r'chunk\(size=0\): must be a whole number'),
    ('mla(kv_rank=4, d_nope=2, d_rope=3, d_value=2)', 'd_rope=3 must be even'),
    (
      "mla(kv_rank=4, d_nope=2, d_rope=2, d_value=2, positions='none')",
      "its positions turn; 'rope' is wanted",
    ),
    ("full(positions='rope(share=0.0)')", 'share=0.0; valid'),
    (
      'full(positions=\'rope(scaling="yarn(factor=0.0, original_length=8)")\')',
      'factor=0.0 must be positive',
    ),
    (
      'full(positions=\'rope(scaling="ntk(factor=2.0)")\')',
      "unknown scaling 'ntk'; valid: linear, llama3, yarn",
    ),
  ],
)
def test_what_no_kind_can_be_is_told(call, message):
  with pytest.raises(ValueError, match=message):
    made(call)


def test_a_width_of_its_own_counts_by_the_mean():
  """FLOPs of a product with keys and of one with values."""
  kind, _ = made(MLA['low rank'])
  assert kind.width == 4 * (10 + 3) / 2
  assert isinstance(kind, attention.Kind)
