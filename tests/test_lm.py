"""The router presets of configs/lm.py: whole, of equal cost, the papers'."""

import functools

import jax
import pytest

from configs import base, lm, routers
from moe_jax import registry
from moe_jax.layers import causality
from moe_jax.models import factory
from moe_jax.runs import configs as configs_lib
from moe_jax.training import plans, step as step_lib

NAMES = sorted(routers.PRESETS)
SPARSE = [n for n in NAMES if n != 'dense']
# Those whose step is traced always; together they have every kind of field.
FEW = ('switch', 'deepseek_v3', 'moe_plus_plus')
# What no preset is for: replay needs recorded experts; these go with any router
# of a matrix, with any router.
NO_PRESET = {
  *('replay', 'forced', 'sample_top_1', 'flex_olmo', 'simbal'),
  'shared_low_rank',
}

# By hand, at d = 128 with 8 experts' worth: a gated FFN is 288 wide, an
# ungated one 432. Experts, those of a token, their width, the shared FFN's.
SIZES = {
  'switch': (8, 1, 432, 0),
  'hash': (8, 1, 432, 0),
  'top_k': (16, 2, 144, 0),
  'gshard': (16, 2, 216, 0),
  'noisy_top_k': (32, 4, 108, 0),
  'gpt_oss': (32, 4, 72, 0),
  'bip': (32, 4, 72, 0),
  'olmoe': (64, 8, 36, 0),
  'deepseek_moe': (63, 7, 36, 36),
  'deepseek_v2': (64, 6, 36, 72),
  'deepseek_v3': (64, 8, 32, 32),
  'loss_free': (64, 6, 36, 72),
  'qwen2_moe': (60, 4, 36, 144),
  'llama4': (16, 1, 144, 144),
  'expert_choice': (16, 2, 216, 0),
  'adamoe': (16, 2, 144, 0),  # half of 4 choices, 16 of 32 being null
  # 2 x 0.75 x 8 / (0.75 x 8 + 3) = 4/3 of 216.
  'moe_plus_plus': (8, 4 / 3, 216, 0),
  'remoe': (8, 1, 288, 0),
  'top_p': (16, 2, 144, 0),
}
# Numbers of the papers, as substrings of the preset's call strings.
CONSTANTS = {
  'switch': ['jitter=0.01', 'switch_loss(weight=0.01)'],
  'st_moe': ['k=2', 'threshold=0.2', 'z_loss(weight=0.001)'],
  'vmoe': ['importance_loss(weight=0.005)', 'load_loss(weight=0.005)'],
  'noisy_top_k': ['importance_loss(weight=0.1)', 'load_loss(weight=0.1)'],
  'olmoe': ['k=8, renormalize=False', 'weight=0.01', 'z_loss(weight=0.001)'],
  'deepseek_moe': ['k=7, renormalize=False', 'weight=0.01'],
  'deepseek_v2': ['k=6', 'kept_groups=3', '16.0', '0.003', '0.05', '0.02'],
  'deepseek_v3': ['k=8', 'kept_groups=4', '2.5', 'rate=0.001', '0.0001'],
  'top_p': ['p=0.4', 'weight=0.01', 'entropy_loss(weight=0.0001)'],
  'adamoe': ['k=4', 'null_loss(weight=0.08)', 'zero(count=16)'],
  'moe_plus_plus': ['k=2', 'tau=0.75', 'constant(count=1)'],
  'sigma_moe': ['temperature=0.1'],
  'module_former': ['weight=0.001'],
  'expert_choice': ['choices=2.0'],
  'capped_expert_choice': ['cap=3'],
  'product_keys': ['heads=8, k=16', 'd_ff=1'],
}


@pytest.fixture(scope='module')
def small():
  return {n: lm.get_config(f'router={n}') for n in NAMES}


@functools.cache
def session_of(name):
  return plans.make(lm.get_config(f'router={name},size=tiny'), 'exact()')


def calls(config):
  m = config.moe
  return (m.router, *m.balance, m.experts, *m.local_experts)


def test_every_router_and_rule_has_a_preset(small):
  used = [registry.parse(s)[0] for c in small.values() for s in calls(c)]
  for family in ('routers', 'balancing', 'experts', 'local_experts'):
    assert set(registry.names(family)) - set(used) <= NO_PRESET, family


def test_structure_is_the_schemas(small):
  plain = configs_lib.flatten(base.get_config())
  for config in small.values():
    assert config.is_locked
    assert set(configs_lib.flatten(config)) == set(plain)


@pytest.mark.parametrize('name', sorted(SIZES))
def test_widths_by_hand(name, small):
  moe, (experts, used, width, shared) = small[name].moe, SIZES[name]
  assert (moe.num_experts, moe.d_ff) == (experts, width)
  whole = 288 if 'glu' in small[name].model.ffn else 432
  assert used * width + shared == pytest.approx(whole)
  assert (moe.dense_branch != 'none') == (shared > 0)
  if shared:
    assert moe.dense_branch_d_ff == shared
  assert moe.dense_branch == {'qwen2_moe': 'gated'}.get(
    name, 'shared' if shared else 'none'
  )


@pytest.mark.parametrize('name', sorted(CONSTANTS))
def test_constants_of_the_papers(name, small):
  text = ' '.join(calls(small[name]))
  for constant in CONSTANTS[name]:
    assert constant in text, text


def test_capacities_of_the_papers(small):
  got = lambda n: (
    small[n].moe.capacity_rule,
    small[n].moe.capacity_factor,
    small[n].moe.eval_capacity_factor,
  )
  assert got('switch') == got('st_moe') == ('paper()', 1.25, 2.0)
  assert got('gshard') == ('per_choice()', 1.0, 1.0)
  assert got('vmoe') == ('vmoe()', 1.05, 1.05)
  assert got('base_layer') == ('per_choice()', 1.0, 0.0)
  assert got('moe_plus_plus') == ('moe_plus_plus(tau=0.75)', 1.1, 1.1)
  assert got('olmoe')[1:] == got('deepseek_v3')[1:] == (0.0, 0.0)
  assert small['soft'].moe.router == 'soft(slots=32)'  # 256 tokens, 8 experts


def moe_flops(name):
  """Forward, counted from the parameters, less routers and their like."""
  session = session_of(name)
  tokens = 32
  flops = session.forward_flops()
  for leaf in session.leaves():
    if leaf.part in ('router', 'other') or leaf.names[-1] == 'dense_gate':
      if leaf.is_matrix:
        flops -= 2 * leaf.size * tokens
    if 'expert' in leaf.axes and name == 'moe_plus_plus':
      # Counted there as if all 11 were chosen alike: 2 / 11 of each of 8.
      share = session.expert_share()['decoder']
      flops += 2 * leaf.size * tokens * (4 / 3 / 8 - share)
  return flops


# Some are as dear as the rest by this count, which takes their word.
DEARER = ('st_moe', 'product_keys', 'comet', 'top_p')


@pytest.mark.parametrize('name', SPARSE)
def test_flops_are_equal(name):
  equal = moe_flops(name) == pytest.approx(moe_flops('dense'), rel=1e-9)
  assert equal or routers.UNEQUAL[name]
  assert not (equal and name in DEARER)


@pytest.mark.parametrize('name', ['autonomy'])
def test_autonomy_has_a_gated_experts_parameters(name, small):
  """d_low = 42 = 128 / 3: 3 x 128 x 144 of each, to a row."""
  moe = small[name].moe
  d, low = 128, 42
  assert moe.experts == 'autonomy(d_low=42)'
  own = d * low + low * moe.d_ff + 2 * d * moe.d_ff
  assert abs(own - 3 * d * 144) <= (low + 2 * d) / 2


@pytest.mark.parametrize('name', SPARSE)
def test_causal_or_marked(name):
  """A preset that lets a token see later ones says so, and no other does."""
  session = session_of(name)
  layer = session.model.stacks['decoder'].moe
  leak = causality.leak(layer, session.config.model.d_model)
  assert bool(leak) == session.config.moe.allow_noncausal
  if not layer.router.causal:
    assert session.config.moe.allow_noncausal


@pytest.mark.parametrize(
  'name',
  [pytest.param(n, marks=() if n in FEW else pytest.mark.slow) for n in NAMES],
)
def test_a_step_traces(name):
  session = session_of(name)
  c = session.config
  batch = jax.eval_shape(
    lambda: factory.dummy_batch(c, c.train.batch_size, c.data.seq_len)
  )
  batch['targets'] = batch['inputs']
  step = step_lib.make_train_step(
    session.model, session.tx, problem=session.problem, seed=0
  )
  state, metrics = jax.eval_shape(step, session.abstract_state, batch)
  assert metrics['loss'].shape == ()
  assert jax.tree.structure(state) == jax.tree.structure(session.abstract_state)
  if name != 'dense':
    rules = {registry.parse(s)[0] for s in c.moe.balance}
    # Rules of a state alone have no loss.
    assert set(metrics['balance']) == rules - {'bip', 'loss_free_bias'}


def test_base_is_well_formed():
  """32 experts' worth, of 256 routed: the papers' own numbers of V3."""
  moe = lm.get_config('router=deepseek_v3,size=base').moe
  assert (moe.num_experts, moe.d_ff, moe.dense_branch_d_ff) == (256, 128, 128)
  factory.make(lm.get_config('router=moe_plus_plus,size=base'), 384)


def test_other_names_and_another_ffn():
  assert lm.get_config('router=mixtral') == lm.get_config('router=top_k')
  assert lm.get_config('') == lm.get_config('size=small,router=switch')
  config = base.get_config()
  with config.unlocked():
    routers.apply(config, 'switch', 4, ffn=routers.SWIGLU)
    assert config.moe.experts == config.model.ffn == routers.SWIGLU
    assert (config.moe.d_ff, config.moe.num_experts) == (288, 4)
    routers.apply(config, 'gpt_oss', 4, ffn=routers.RELU)
  assert config.moe.experts == 'clamped_glu()'


@pytest.mark.parametrize(
  ('arg', 'message'),
  [
    ('router=olmo', "no router preset 'olmo'; valid: adamoe, .*'olmoe'"),
    ('size=big', "no size 'big'; valid: tiny, small, base"),
    ('olmoe', "cannot read 'olmoe'; expected router=NAME,size=NAME"),
    ('k=2', "cannot read 'k=2'; expected router=NAME,size=NAME"),
  ],
)
def test_errors(arg, message):
  with pytest.raises(ValueError, match=message) as e:
    lm.get_config(arg)
  assert '\n' not in str(e.value)


def test_file_says_how_it_is_run():
  assert 'experiments.train --config=configs/lm.py:router=' in lm.__doc__
