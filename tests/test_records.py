"""Layers as records: windows, layers without positions, sizes that differ."""

import dataclasses
import itertools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax import registry
from moe_jax.layers import attentions, moe, positions
from moe_jax.models import factory, pattern, records, stack
from moe_jax.runs import configs
from moe_jax.training import loop, plans, step
from tests import (
  mains,
  reference_models as loops,
  test_model_loops as models,
  tiny,
)

KINDS = ('window(size=3)', 'window(size=2)', "full(positions='none')")
BY_FLAG = ('window(size=4)', "full(positions='none')")
FLAGS = ('--config=tests/tiny.py', f'--config.model.attention={BY_FLAG}')
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
    attentions.build(kind, num_heads=2, d_head=4),
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


@pytest.mark.slow
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


@pytest.mark.parametrize('name', ['none', 'rope', 'rope(base=3.0)'])
def test_without_positions_the_past_has_no_order(name):
  """The last token's output, of those before it in another order."""
  model, v = built(block(f'full(positions={name!r})'))
  x = jax.random.normal(jax.random.key(1), (1, 6, 8))
  swapped = jnp.concatenate([x[:, -2::-1], x[:, -1:]], 1)
  ones, place = jnp.ones((2, 6), jnp.int32), jnp.tile(jnp.arange(6), (2, 1))
  run = jax.jit(lambda x: model.apply(v, x, place, ones, train=False)[0])
  last, other = run(jnp.concatenate([x, swapped]))[:, -1]
  assert (np.abs(last - other).max() < 1e-5) == (name == 'none')


def test_rotation_by_hand():
  """exp(i position base^(-2j/J)), (j, j + J/2) a complex number."""
  x = np.random.default_rng(0).normal(size=(1, 5, 1, 6)).astype(np.float32)
  place = np.array([[0, 1, 2, 7, 30]])
  turn = np.exp(1j * place[..., None, None] * 50.0 ** (-np.arange(3) / 3))
  want = (x[..., :3] + 1j * x[..., 3:]) * turn
  got = np.asarray(positions.rope(base=50.0).turn(x, place))
  np.testing.assert_allclose(got[..., :3], want.real, atol=1e-5)
  np.testing.assert_allclose(got[..., 3:], want.imag, atol=1e-5)
  assert positions.build('rope') == positions.rope(base=10_000.0)


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


def layout(**fields):
  """A stack's config, and its parameters' shapes by name."""
  config, model = models.make(**fields)
  b = factory.dummy_batch(config, 1, 16)
  init = lambda: nn.unbox(model.init(jax.random.key(0), b, train=False))
  return model.stack_config, jax.eval_shape(init)['params']['decoder']


def test_names_of_a_period():
  config, p = layout(**MIXED | {'model.num_layers': 12})
  sizes = [getattr(x.attention, 'size', None) for x in config.split.period]
  assert sizes == [3, 2, None] * 2 and set(p) == {'period', 'final_norm'}
  assert set(p['period']) == {f'block_{i}' for i in range(6)}
  for i in range(6):
    own, ffn = p['period'][f'block_{i}'], ('ffn', 'moe')[i % 2]
    assert {ffn, f'{ffn}_norm'} == set(own) - {'attention', 'attention_norm'}
    assert all(v.shape[0] == 2 for v in jax.tree.leaves(own))


def test_a_dense_first_layer_does_not_stop_the_scan():
  fields = {'model.num_layers': 5, 'moe.layers': 'from_1'}
  config, p = layout(**fields)
  assert config.sparse == (False, True, True, True, True)
  assert set(p) == {'prefix_0', 'period', 'final_norm'}
  assert 'ffn' in p['prefix_0'] and set(p['period']) == {'block_0'}
  assert p['period']['block_0']['moe']['experts']['wi'].shape[0] == 4
  assert pattern.sparse_layers('from_0', 2) == (True, True)
  with pytest.raises(ValueError, match=r"moe.layers='from_5' makes none of 5"):
    pattern.sparse_layers('from_5', 5)


def test_split_is_by_equality():
  """Of anything: attention counts as sparsity does."""
  s = pattern.split('xwwfwwfy')
  assert (s.prefix, ''.join(s.period), s.repeats) == (('x',), 'wwf', 2)
  assert pattern.places(s)[:2] == (
    ('prefix_0', None, 0),
    ('period', 'block_0', 0),
  )
  assert pattern.split('abc').prefix == ('a', 'b', 'c')


def best(layers, whole):
  """The repetition that covers most; the shortest, the first. By trying all.

  Args:
    layers: a sequence.
    whole: whether it may be cut before the layer of a number.
  """
  n, found = len(layers), (0, 0, 0, (layers, layers[:0], 0, layers[:0]))
  for a, p, r in itertools.product(range(n), range(1, n), range(2, n + 1)):
    end = a + p * r
    parts = layers[:a], layers[a : a + p], r, layers[end:]
    if end > n or parts[0] + parts[1] * r + parts[3] != layers:
      continue
    if all(whole(i) for i in range(a, end + 1, p)):
      found = max(found, (p * r, -p, -a, parts), key=lambda v: v[:3])
  return found[3]


def sequences(kinds):
  for n in range(1, 8):
    yield from itertools.product(kinds, repeat=n)


def test_the_period_is_the_best_of_all():
  """Cut anywhere, and where it happens to be allowed."""
  rng = np.random.default_rng(0)
  for layers in sequences('abc'):
    anywhere = np.ones(len(layers) + 1, bool)
    some = rng.random(len(layers) + 1) < 0.8
    for cuts, given in ((anywhere, None), (some, some)):
      s = pattern.split(layers, given)
      got = s.prefix, s.period, s.repeats, s.suffix
      assert got == best(layers, cuts.__getitem__), (layers, cuts)


def test_those_that_share_experts_are_not_parted():
  """Dense layers, MoE layers of their own experts, and those that take them."""
  own = block(experts=2)
  kinds = {'d': block(), 'o': own}
  kinds['t'] = dataclasses.replace(own, takes_experts=True)
  letter = {v: k for k, v in kinds.items()}
  read = lambda layers: ''.join(letter[x] for x in layers)
  for letters in map(''.join, sequences('dot')):
    if letters.strip('d')[:1] == 't':
      continue  # nothing to take
    whole = lambda i, v=letters: v[i:].strip('d')[:1] != 't'
    layers = tuple(kinds[k] for k in letters)
    s = records.StackConfig(layers, d_model=8, causal=False).split
    got = read(s.prefix), read(s.period), s.repeats, read(s.suffix)
    assert got == best(letters, whole), letters


@pytest.mark.parametrize(
  ('kinds', 'message'),
  [
    (('sliding(size=3)',), "'sliding'; valid: chunk, full, mla, window"),
    (('window(size=0)',), r'window\(size=0\): must be a whole number'),
    (('window()',), "attention 'window'.*'size'"),
    (
      ('window(width=3)',),
      "argument of attention 'window' 'width'; valid: bias",
    ),
    (("full(positions='rop')",), "'rop'; valid: none, relative, rope"),
    (("full(positions='rope(base=0)')",), 'base=0 must be positive'),
    (('full(d_head=7)',), 'd_head=7 must be even for rope positions'),
    (('full(num_heads=0)',), 'num_heads=0 must be at least 1'),
    (('full(positions=None)',), 'cannot read None'),
    (('full()',) * 3, r"'full\(\)'\): the 2 layers want 1 to 2 kinds, as \("),
    ((), r'attention=\(\): the 2 layers want 1 to 2 kinds'),
    (
      ("full(positions='relative')", "full(num_heads=1, positions='relative')"),
      r'share their relative positions; these have \[1, 2\] heads',
    ),
  ],
)
def test_wrong_kinds_are_told(kinds, message):
  with pytest.raises(ValueError, match=message) as e:
    factory.make(tiny.config(**{'model.attention': kinds}), 32)
  assert '\n' not in str(e.value)


def test_kinds_are_a_tuple():
  plain = configs.from_dict(configs.to_dict(tiny.config())).to_dict()
  plain['model']['attention'] = 'full()'
  message = r"config.model.attention is 'full\(\)'; a tuple is wanted"
  with pytest.raises(ValueError, match=message):
    configs.validate(plain)


def test_flops_of_a_window_by_hand():
  """One layer sees 4 keys, one all 16; in both directions 7."""
  _, out = mains.call('describe', *FLAGS, '--config.moe.layers=none', '--json')
  D, HJ, F, n, V = 16, 16, 32, 2, 384
  want = 6 * (n * (4 * D * HJ + 2 * D * F) + D * V) + 12 * HJ * (4 + 16)
  assert json.loads(out)['flops_per_token'] == want
  fields = {
    'model.attention': ('window(size=4)', 'full()'),
    'model.kind': 'encoder_decoder',
    'data.objective': 'span_corruption()',
    'data.seq_len': 32,
  }
  work = plans.make(tiny.config(**fields), 'exact()').work()
  assert work['encoder'].attention == ((1, 16, 7), (1, 16, 32))
  cross = (1, 16, 32)
  assert work['decoder'].attention == ((1, 16, 4), cross, (1, 16, 8), cross)


def test_kinds_by_flag(monkeypatch, tmp_path):
  seen = []

  def train(config, *_, **__):
    seen.append(config.model.attention)
    raise InterruptedError

  monkeypatch.setattr(loop, 'train', train)
  with pytest.raises(InterruptedError):
    mains.call('train', *FLAGS, f'--workdir={tmp_path}')
  assert seen == [BY_FLAG]


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
