"""Layers as records: windows, layers without positions, sizes that differ."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax import registry
from moe_jax.layers import attention, moe
from moe_jax.models import factory, pattern, records, stack
from moe_jax.training import plans, step
from tests import reference_models as loops, test_model_loops as models, tiny

KINDS = ('window(size=3)', 'window(size=2)', "full(positions='none')")
# Every other layer is sparse: a period of six.
MIXED = {'model.attention': KINDS, 'model.num_layers': 13}


def block(kind='full()', experts=0, **fields):
  """A layer of width 8, without drops."""
  build = registry.build
  moe_ = moe.MoE(
    num_experts=experts,
    router=build('routers', 'switch()'),
    experts=build('experts', 'mlp()', d_ff=6),
    dispatch=build('dispatch', 'dense()'),
    balance=('switch_loss(weight=0.01)',),
    group_size=6,
    capacity_factor=None,
    eval_capacity_factor=None,
  )
  return records.Layer(
    attention.build(kind, num_heads=2, d_head=4),
    build('experts', 'mlp()', d_ff=6),
    moe_ if experts else None,
    **fields,
  )


def built(*layers, **options):
  """A stack, and its variables."""
  model = stack.Stack(records.StackConfig(layers, d_model=8, **options))
  x, ones = jnp.ones((1, 6, 8)), jnp.ones((1, 6), jnp.int32)
  init = lambda: model.init(jax.random.key(0), x, ones, ones, train=False)
  rng = np.random.default_rng(0)
  draw = lambda v: rng.normal(size=v.shape).astype(np.float32)
  shapes = jax.eval_shape(lambda: nn.unbox(init()))
  return model, jax.tree.map(draw, shapes)


def test_a_period_of_windows_is_a_loop_over_layers():
  """Thirteen layers, twelve of them scanned; packed documents."""
  _, scanned = models.make(**MIXED)
  parts = scanned.stack_config.split
  assert (len(parts.period), parts.repeats, len(parts.suffix)) == (6, 2, 1)
  b = models.row(9, 0, (6, 2))
  params = models.drawn(scanned, models.device(b))
  p = models.as_float64(params)
  x = p['embedding']['table'][b['inputs']]
  segment, position = b['segments'], b['positions']
  for l, (module, name, r) in enumerate(scanned.stack_config.places):
    own = p['decoder'][module]
    if name is not None:
      own = jax.tree.map(lambda v, r=r: v[r], own[name])
    near = (3, 2, 99)[l % 3]
    visible = lambda t, s, near=near: (
      segment[t] == segment[s] and 0 <= t - s < near
    )
    # At place 0 nothing is turned.
    place = position * (l % 3 < 2)
    x = loops.block(own, x, visible, place)
  want = loops.rms_norm(x, p['decoder']['final_norm'])
  want = want @ p['embedding']['table'].T * 8**-0.5
  for scan in (True, False):
    _, model = models.make(**MIXED, **{'model.scan': scan})
    run = jax.jit(lambda p, b, m=model: m.apply({'params': p}, b, train=False))
    got = run(params, models.device(b))[0][0]
    models.close(got, want, segment > 0)


@pytest.mark.parametrize('causal', [True, False])
def test_a_window_ends_where_it_says(causal):
  """Token 2 is seen by itself and those less than 2 away."""
  model, v = built(block('window(size=2)'), causal=causal)
  x = jax.random.normal(jax.random.key(1), (1, 6, 8))
  ones, place = jnp.ones((1, 6), jnp.int32), jnp.arange(6)[None]
  run = jax.jit(lambda x: model.apply(v, x, place, ones, train=False)[0])
  changed = np.abs(run(x.at[0, 2].add(1.0)) - run(x))[0].max(-1)
  moved = [2, 3] if causal else [1, 2, 3]
  assert np.flatnonzero(changed > 1e-3).tolist() == moved
  assert not changed[[i for i in range(6) if i not in moved]].any()


def test_a_cache_keeps_what_windows_see():
  """A prompt and single tokens, past the windows' ends."""
  fields = {'model.attention': KINDS[::2], 'moe.layers': 'none'}
  config, model = models.make(**fields)
  cached = factory.make(config, models.V, cache_length=8)
  b = models.device(models.row(8, 0))
  v = {'params': models.drawn(model, b)}
  want = jax.jit(lambda: model.apply(v, b, train=False)[0])()

  @jax.jit
  def call(cache, part):
    (logits, _), made = cached.apply(
      v | cache, part, train=False, mutable=['cache']
    )
    return made, logits

  cache, parts = {}, []
  for a, z in ((0, 4), (4, 5), (5, 6), (6, 7), (7, 8)):
    cache, got = call(cache, {k: x[:, a:z] for k, x in b.items()})
    parts.append(got)
  np.testing.assert_allclose(np.concatenate(parts, 1), want, atol=2e-5)


def test_layers_may_have_experts_of_their_own():
  """Two MoE layers of 4 and 2 experts: outputs, losses, gradients, loads."""
  layers = (block(experts=4), block(experts=2))
  model, v = built(*layers)
  config = model.config
  assert config.split.repeats == 0 and config.sparse == (True, True)
  x = jax.random.normal(jax.random.key(1), (1, 6, 8))
  ones, place = jnp.ones((1, 6), jnp.int32), jnp.arange(6)[None]

  def loss(p):
    y, aux = model.apply({**v, 'params': p}, x, place, ones, train=True)
    found = stack.aux_by_layer(aux, config.places)
    return (y**2).sum() + sum(a.loss for _, a in found), found

  gradients, found = jax.jit(jax.grad(loss, has_aux=True))(v['params'])
  assert [(l, a.load_E.shape, int(a.load_E.sum())) for l, a in found] == [
    (0, (4,), 6),
    (1, (2,), 6),
  ]
  assert all(float(a.loss) > 0 for _, a in found)
  assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradients))
  with pytest.raises(ValueError, match=r'layers 0, 1 differ in .*\(4,\), \(2,'):
    step.moe_metrics([(str(l), a) for l, a in found])
  with pytest.raises(ValueError, match=r'MoE layers \[0, 1\] .* differ'):
    _ = config.moe
  grown = config.with_moe(lambda m: dataclasses.replace(m, num_experts=3))
  assert grown.moe.num_experts == 3 and grown.split.repeats == 2


def test_layers_share_experts_by_record():
  """Groups of unequal size; none is cut by a period."""
  own, more = block(experts=2), block(experts=2, takes_experts=True)
  more = dataclasses.replace(more, moe=own.moe)
  config = records.StackConfig((own, more) * 3 + (more,), d_model=8)
  parts = config.split
  assert (parts.repeats, parts.suffix) == (2, (own, more, more))
  assert config.share_experts == 7 / 3
  other = dataclasses.replace(block(experts=4), takes_experts=True)
  lone = block(takes_experts=True)
  for wrong in ((more, own), (own, other), (block(), more), (lone,)):
    with pytest.raises(ValueError, match='takes the experts of the MoE layer'):
      records.StackConfig(wrong, d_model=8)


def test_split_is_by_equality():
  """Of anything: attention counts as sparsity does."""
  s = pattern.split('xwwfwwfy')
  assert (s.prefix, ''.join(s.period), s.repeats) == (('x',), 'wwf', 2)
  assert pattern.places(s)[:2] == (
    ('prefix_0', None, 0),
    ('period', 'block_0', 0),
  )
  assert pattern.split('abc').prefix == ('a', 'b', 'c')


@pytest.mark.parametrize(
  ('kinds', 'message'),
  [
    (('sliding(size=3)',), "unknown attention 'sliding'; valid: full, window"),
    (('window(size=0)',), r'window\(size=0\): must be at least 1'),
    (('window()',), "attention 'window'.*'size'"),
    (
      ('window(width=3)',),
      "argument of attention 'window' 'width'; valid: d_h",
    ),
    (("full(positions='rop')",), "'rop'; valid: none, relative, rope"),
    (("full(positions='rope(base=0)')",), 'base=0 must be positive'),
    (('full()',) * 3, 'for 2 layers'),
    ((), 'for 2 layers'),
    (
      ("full(positions='relative')", "full(num_heads=1, positions='relative')"),
      r'share their relative positions; these have \[1, 2\] heads',
    ),
  ],
)
def test_wrong_kinds_are_told(kinds, message):
  with pytest.raises(ValueError, match=message):
    factory.make(tiny.config(**{'model.attention': kinds}), 32)


def test_windows_cost_what_they_see():
  """4 x heads x width x keys a token, of the 16 or the 3 that are seen."""
  flops = {}
  for kinds in (('full()',), ('full()', 'window(size=3)')):
    session = plans.make(tiny.config(**{'model.attention': kinds}), 'exact()')
    flops[kinds[-1]] = session.forward_flops()
  fewer = 4 * 2 * 8 * 16 * (16 - 3)
  assert flops['full()'] - flops['window(size=3)'] == fewer


def test_a_dense_layer_may_be_wider():
  """As DeepSeek-V3's first ones, before layers with experts."""
  wide = dataclasses.replace(
    block(), ffn=registry.build('experts', 'mlp()', d_ff=10)
  )
  model, v = built(wide, *(block(experts=2, extra_ffn='after'),) * 2)
  p = v['params']
  assert p['prefix_0']['ffn']['ffn']['wi'].shape == (8, 10)
  assert p['period']['block_0']['extra']['ffn']['wi'].shape == (2, 8, 6)
  assert model.config.sparse == (False, True, True)
