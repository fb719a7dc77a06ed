"""Fine-tuning: what a run starts from, and which parameters it trains."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moe_jax.data import pipeline
from moe_jax.models import by_layer, factory
from moe_jax.parallel import mesh as mesh_lib
from moe_jax.runs import checkpoint, configs, workdir as workdir_lib
from moe_jax.training import (
  loop,
  optimizers,
  session as session_lib,
  start,
  state as state_lib,
  step as step_lib,
  tuning,
)
from tests import tiny

WORDS = b'the router sends each token to one expert and the expert answers '
ENCODER_DECODER = {
  'model.kind': 'encoder_decoder',
  'model.positions': 'relative',
  'data.objective': 'span_corruption()',
  'data.seq_len': 32,
  'moe.group_size': 1,
}
KINDS = {'decoder': {}, 'encoder_decoder': ENCODER_DECODER}
BALANCE = ('switch_loss()', 'loss_free_bias()')


@pytest.fixture(scope='session')
def corpus(tmp_path_factory):
  root = tmp_path_factory.mktemp('corpus')
  rng = np.random.default_rng(0)
  documents = [b' '.join(rng.choice(WORDS.split(), 30)) for _ in range(80)]
  (root / 'a.txt').write_bytes(b'\n\n'.join(documents))
  return {
    'data.name': 'text_files',
    'data.dir': str(root),
    'data.cache': str(root / 'cache'),
  }


def noise(abstract, seed, size=0.1):
  """Noise of these shapes in these places: nothing is compiled."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda v: jax.device_put(
      (size * rng.normal(size=v.shape)).astype(v.dtype), v.sharding
    ),
    abstract,
  )


def write_run(config, workdir):
  """What a run of this config would leave: its config and a checkpoint."""
  workdir_lib.prepare(workdir, configs.to_dict(config), restart=False, allow=())
  session = session_lib.make(config, workdir)
  with checkpoint.Checkpointer(workdir / 'checkpoints', 1) as c:
    c.save(1, noise(session.abstract_state, 5), {})
  return workdir


@pytest.fixture(scope='session')
def source(corpus, tmp_path_factory):
  """A sparse run whose balancing rules have a state."""
  config = tiny.config(**corpus, **{'moe.balance': BALANCE})
  return write_run(config, tmp_path_factory.mktemp('source'))


def saved(workdir, step=None):
  """{'params/decoder/...': array} of a checkpoint, read by its own names."""
  directory = workdir / 'checkpoints'
  step = checkpoint.steps(directory)[-1] if step is None else step
  meta = json.loads((directory / str(step) / 'meta.json').read_text())
  where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  wanted = {
    k: jax.ShapeDtypeStruct(shape, dtype, sharding=where)
    for k, (shape, dtype) in meta['leaves'].items()
  }
  with checkpoint.Checkpointer(directory, 1) as c:
    return jax.device_get(c.restore(wanted, step)[0])


def read_rows(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


# By hand, of names: what each choice trains.
TRAINED = {
  'all': lambda n: True,
  'moe': lambda n: '/moe/' in n,
  'non_moe': lambda n: '/moe/' not in n,
  'attention': lambda n: (
    ('/attention/' in n or '/cross/' in n)
    and n.rpartition('/')[2] in ('query', 'key', 'value', 'out')
  ),
  'ffn': lambda n: '/ffn/ffn/' in n or '/extra/ffn/' in n,
}


B1 = 0.9


@dataclasses.dataclass
class Steps:
  """Two updates of a tiny model on one device, without the loop.

  Attributes:
    before, after: parameters by name.
    states: of the balancing rules, before and after, by name.
    gradient: of the first step, by the name of the trained leaves.
    held: numbers in the optimizer's state.
    trained: parameters, by `tuning.size`.
    norm, flops: of the gradients; of a step.
  """

  before: dict
  after: dict
  states: tuple[dict, dict]
  gradient: dict
  held: int
  trained: int
  norm: float
  flops: float


@functools.cache
def steps(fields, kind, choice, clip=0.0, accumulate=1):
  fields = {
    'train.optimizer': f'adamw(b1={B1}, weight_decay=0.1)',
    'train.schedule': 'constant(value=0.01)',
    'train.clip': clip,
    'train.accumulate': accumulate,
    'train.trainable': choice,
    'moe.extra_ffn': 'before',
    'moe.balance': BALANCE,
    'moe.dense_branch': 'gated',
    'moe.dense_branch_d_ff': 16,
    **dict(fields),
    **KINDS[kind],
  }
  config = tiny.config(**fields)
  mesh, model = mesh_lib.single(), factory.make(config, 384)
  dummy = session_lib.dummy(config, mesh)
  lay = state_lib.layout(model, dummy)
  tx, _ = session_lib.make_optimizer(config, lay.batch_dims())
  # Parameters of noise, the rest of a start: nothing is compiled for them.
  first = jax.tree.map(jnp.zeros_like, state_lib.abstract(tx, lay, mesh))
  first = first.replace(params=noise(first.params, 0, 0.5))
  mask = tuning.trained(lay.params, choice)
  step = step_lib.make_train_step(
    model, tx, seed=0, accumulate=accumulate, trained=mask
  )
  data = pipeline.load(config.data, cache_dir=config.data.cache)
  batch = data.batch(seed=0, batch_size=8, step=0)
  step = jax.jit(step).lower(first, batch).compile()
  cost = step.cost_analysis()
  cost = cost[0] if isinstance(cost, list) else cost
  state, metrics = step(first, batch)
  # The first moment after one step is (1 - b1) times the gradient.
  moments = {
    k.partition('/mu/')[2]: v / (1 - B1)
    for k, v in named(state.opt_state).items()
    if '/mu/' in k
  }
  held = sum(v.size for v in jax.tree.leaves(state.opt_state))
  state, _ = step(state, batch)
  return Steps(
    named(first.params),
    named(state.params),
    (named(first.balance), named(state.balance)),
    moments,
    held,
    tuning.size(first.params, mask),
    float(metrics['grad_norm']),
    cost['flops'],
  )


def named(tree):
  host = checkpoint.named(jax.device_get(tree))
  return {k: np.asarray(v) for k, v in host.items()}


@pytest.fixture(scope='session')
def fields(corpus):
  return tuple(corpus.items())


@pytest.mark.parametrize(
  ('kind', 'choice'),
  [
    *(('decoder', c) for c in tuning.CHOICES),
    ('encoder_decoder', 'attention'),
    *(
      pytest.param('encoder_decoder', c, marks=pytest.mark.slow)
      for c in tuning.CHOICES
      if c != 'attention'
    ),
  ],
)
def test_frozen_leaves_stay_to_the_bit(fields, kind, choice):
  run, wanted = steps(fields, kind, choice), 0
  for name, value in run.before.items():
    moved = not np.array_equal(value, run.after[name])
    assert moved == TRAINED[choice](name), name
    wanted += value.size if TRAINED[choice](name) else 0
  assert 0 < run.trained == wanted
  # Two moments of each trained number, and a count or two.
  assert 2 * wanted <= run.held <= 2 * wanted + 4


@pytest.mark.parametrize('choice', tuning.CHOICES)
def test_balancing_goes_with_the_router(fields, choice):
  """Two steps with a rate of 0.001: its bias is off by up to 0.002, or 0."""
  before, after = steps(fields, 'decoder', choice).states
  assert before.keys() == after.keys() and len(before) == 1
  (moved,) = (np.abs(after[k] - v).max() for k, v in before.items())
  want = 0.002 if choice in ('all', 'moe') else 0.0
  assert moved == pytest.approx(want, rel=1e-5)


def test_a_router_without_parameters_goes_with_its_layer():
  """In a block whose attention is trained or not."""
  for experts in (True, False):
    block = {'attention': {'query': not experts}, 'moe': {'experts': experts}}
    for router in ({}, {'router': {}}):
      moe = block['moe'] | router
      assert tuning.router_moves(block | {'moe': moe}) is experts
  frozen = {'router': {'kernel': False}, 'experts': True}
  assert not tuning.router_moves({'moe': frozen}) and tuning.router_moves(None)


@pytest.mark.parametrize('choice', tuning.CHOICES[1:])
def test_gradients_are_those_of_the_whole(fields, choice):
  """Of the trained leaves; norms are of these alone."""
  whole = steps(fields, 'decoder', 'all').gradient
  run, square = steps(fields, 'decoder', choice), 0.0
  assert set(run.gradient) == {k for k in whole if TRAINED[choice](k)}
  for name, value in run.gradient.items():
    np.testing.assert_allclose(value, whole[name], atol=1e-6)
    square += (value.astype(np.float64) ** 2).sum()
  assert run.norm == pytest.approx(square**0.5, rel=1e-3)


def test_clipping_is_by_the_trained_norm(fields):
  """In two micro-batches."""
  plain = steps(fields, 'decoder', 'attention')
  run = steps(fields, 'decoder', 'attention', clip=0.01, accumulate=2)
  assert run.norm == pytest.approx(plain.norm, rel=1e-4) and run.norm > 0.01
  for name, value in run.gradient.items():
    want = plain.gradient[name] * 0.01 / plain.norm
    np.testing.assert_allclose(value, want, atol=1e-6)


def test_frozen_products_are_not_computed(fields):
  """Gradients of weights are a third of the products."""
  flops = {
    c: steps(fields, 'decoder', c).flops for c in ('all', 'attention', 'moe')
  }
  assert flops['attention'] < 0.9 * flops['all'], flops
  assert flops['moe'] < 0.9 * flops['all'], flops


@pytest.mark.parametrize(
  ('overrides', 'message'),
  [
    ({'train.distill': 1.5}, 'a weight from 0 to 1 is wanted'),
    ({'train.distill': -0.1}, 'a weight from 0 to 1 is wanted'),
    ({'train.init_dense': True}, "train.init_from ''; a workdir is wanted"),
  ],
)
def test_wrong_fields(overrides, message):
  with pytest.raises(ValueError, match=message):
    configs.validate(tiny.config(**overrides))


def test_an_unknown_choice():
  with pytest.raises(ValueError, match='valid: all, attention, ffn, moe'):
    tuning.trained({}, 'router')


def test_an_empty_choice(corpus, tmp_path):
  config = tiny.config(
    **corpus, **{'train.trainable': 'moe', 'moe.layers': 'none'}
  )
  with pytest.raises(ValueError, match="'moe': the model has no such param"):
    loop.train(config, str(tmp_path / 'w'))
  assert not (tmp_path / 'w' / 'config.json').exists()


def test_expert_dropout_is_of_experts_alone():
  """Switch, table 4: 0.4 in experts, 0.1 elsewhere."""
  config = tiny.config(
    **{
      'model.dropout': 0.1,
      'moe.experts': "mlp(activation='relu', dropout=0.4)",
      'moe.dense_branch': 'shared',
    }
  )
  stack = factory.make(config, 384).stacks['decoder']
  made = stack.moe
  assert (made.experts.dropout, made.dense.dropout) == (0.4, 0.1)
  assert (stack.ffn.dropout, stack.dropout) == (0.1, 0.1)


# From another run.

FINETUNE = {'moe.balance': BALANCE, 'data.seq_len': 32}


def started(config, workdir):
  """(fresh state, the state that a run starts from), both on its mesh."""
  session = session_lib.make(config, workdir)
  fresh = noise(session.abstract_state, 6)
  state = start.load(session, str(workdir))(fresh)
  where = jax.tree.map(lambda v: v.sharding, session.abstract_state)
  assert jax.tree.map(lambda v: v.sharding, state) == where
  return named(fresh), named(state)


@pytest.mark.parametrize(
  'mesh', ['auto(expert=4)', 'exact(data=2, expert=2, model=2)'], ids=str
)
def test_a_run_starts_from_another(corpus, source, tmp_path, mesh):
  """To the bit, on any mesh and length; the optimizer's state is fresh."""
  config = tiny.config(
    **corpus,
    **FINETUNE,
    **{
      'train.init_from': str(source),
      'train.optimizer': 'adamw()',
      'mesh': mesh,
    },
  )
  fresh, state = started(config, tmp_path)
  there, taken = saved(source), 0
  for name, value in state.items():
    taken += name.startswith(('params/', 'balance/'))
    own = name.startswith(('step', 'opt_state/'))
    np.testing.assert_array_equal(value, (fresh if own else there)[name])
  assert taken == len([k for k in there if not k.startswith(('step', 'opt'))])
  assert any(np.abs(state[k]).max() for k in state if k.startswith('balance/'))


def test_a_resumed_run_does_not_read_it(corpus, source, tmp_path):
  copy = tmp_path / 'copy'
  copy.mkdir()
  for name in ('config.json', 'checkpoints'):
    (copy / name).symlink_to(source / name)
  fields = FINETUNE | {'train.init_from': str(copy), 'train.steps': 2}
  config, work = tiny.config(**corpus, **fields), str(tmp_path / 'w')
  session = session_lib.make(config, work)
  first = config.copy_and_resolve_references()
  with first.unlocked():
    first.train.steps = 1
  loop.train(first, work, session=dataclasses.replace(session, config=first))
  for path in copy.iterdir():
    path.unlink()
  again = {'allow': ('train.steps',), 'session': session}
  summary = loop.train(config, work, **again)
  with pytest.raises(ValueError, match=r'copy: .* holds no run'):
    loop.train(config, work, restart=True)
  assert summary['trained_parameters'] == summary['parameters']
  assert (tmp_path / 'w' / 'summary.json').exists()


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'model.d_head': 4}, r'attention/key is \(16, 2, 8\) there, \(16, 2, 4\)'),
    ({'moe.num_experts': 8}, r'experts/wi is \(4, 16, 32\) there, \(8, 16, 32'),
    ({'moe.layers': 'none'}, r'it has no decoder/period/block_0/attention/key'),
    ({'model.vocab_size': 400}, r'embedding/table is \(384, 16\) there, \(400'),
    ({'model.qk_norm': False}, r'key_norm/scale \(8,\) is not in this model'),
    (
      KINDS['encoder_decoder'],
      "its model.kind is 'decoder', here 'encoder_decoder'",
    ),
  ],
  ids=str,
)
def test_what_does_not_fit(corpus, source, tmp_path, fields, message):
  fields = {'train.init_from': str(source)} | fields
  work = tmp_path / 'w'
  with pytest.raises(ValueError, match=message) as e:
    loop.train(tiny.config(**corpus, **fields), str(work))
  assert f'train.init_from={source}: ' in str(e.value)
  assert '\n' not in str(e.value)
  assert not (work / 'config.json').exists()


def test_no_run_or_no_checkpoint(corpus, source, tmp_path):
  empty = tmp_path / 'empty'
  empty.mkdir()
  for message in ('holds no run: no config.json', 'holds no checkpoint'):
    for field in ('train.init_from', 'train.teacher'):
      config = tiny.config(**corpus, **{field: str(empty)})
      with pytest.raises(ValueError, match=f'{field}=.*empty: .*{message}'):
        loop.train(config, str(tmp_path / 'w'))
    (empty / 'config.json').write_text((source / 'config.json').read_text())
  assert not (tmp_path / 'w').exists()


# By layer.

SPARSE = {'s': (False, True, False, True, True)}


def test_a_view_is_by_layer():
  """Prefix, two repeats and suffix, filled with their layer's number."""
  dense = {'s': (False,) * 5}
  one = lambda *v: {'w': np.array(v, np.float32)}
  tree = {
    's': {
      'period': {'block_0': one(0, 2), 'block_1': one(1, 3)},
      'suffix_0': one(4),
      'final_norm': one(9),
    },
    'embedding': one(7),
  }
  found = by_layer.view(tree, SPARSE)
  for i in range(5):
    np.testing.assert_array_equal(found[f's/layer_{i}/w'].reshape(-1), [i])
  assert len(found) == 7 and found['embedding/w'] == 7
  scanned = {'s': {'period': {'block_0': one(0, 1, 2, 3, 4)}}}
  assert by_layer.view(scanned, dense)['s/layer_3/w'] == 3
  new = by_layer.replace(tree, {'s/layer_2/w': jnp.float32(20)}, SPARSE)
  np.testing.assert_array_equal(new['s']['period']['block_0']['w'], [0, 20])
  np.testing.assert_array_equal(new['s']['period']['block_1']['w'], [1, 3])


DEPTH = {'model.num_layers': 4, 'moe.layers': '1,3'}


@pytest.fixture(scope='session')
def teacher(corpus, tmp_path_factory):
  """Four layers, the second and the fourth sparse: a period of two."""
  config = tiny.config(**corpus, **DEPTH)
  return write_run(config, tmp_path_factory.mktemp('teacher'))


def test_another_balancing_rule_begins_anew(corpus, teacher, tmp_path):
  """The teacher's rules have no state."""
  fields = DEPTH | {'train.init_from': str(teacher), 'moe.balance': BALANCE}
  fresh, state = started(tiny.config(**corpus, **fields), tmp_path)
  rules = [k for k in state if k.startswith('balance/')]
  assert rules and not [k for k in saved(teacher) if k in rules]
  for k in rules:
    np.testing.assert_array_equal(state[k], fresh[k])


@pytest.mark.parametrize('layers', ['none', '2', '1,3'])
def test_dense_parameters_go_by_layer(corpus, teacher, tmp_path, layers):
  """Into another layout; FFNs in place of experts are the student's own."""
  fields = DEPTH | {'moe.layers': layers, 'mesh': 'auto(expert=2)'}
  fields |= {'train.init_from': str(teacher), 'train.init_dense': True}
  found = started(tiny.config(**corpus, **fields), tmp_path)
  there, fresh, here = (
    {k[7:]: v for k, v in tree.items() if k.startswith('params/')}
    for tree in (saved(teacher), *found)
  )
  equal = np.testing.assert_array_equal
  equal(here['embedding/table'], there['embedding/table'])
  equal(here['decoder/final_norm/scale'], there['decoder/final_norm/scale'])
  at = {  # where a layer's leaves are, by hand
    'none': lambda i: ('decoder/period/block_0', (i,)),
    '1,3': lambda i: (f'decoder/period/block_{i % 2}', (i // 2,)),
    # The longest repetition is of the two dense layers at the start.
    '2': lambda i: (
      ('decoder/period/block_0', (i,))
      if i < 2
      else (f'decoder/suffix_{i - 2}', ())
    ),
  }
  sparse = {'none': (), '1,3': (1, 3), '2': (2,)}[layers]
  for i in range(4):
    (block, r), (their, s) = at[layers](i), at['1,3'](i)
    for leaf in ('attention/query', 'attention/key_norm/scale'):
      equal(here[f'{block}/{leaf}'][r], there[f'{their}/{leaf}'][s])
    norm = 'moe_norm' if i in sparse else 'ffn_norm'
    theirs = 'moe_norm' if i % 2 else 'ffn_norm'
    equal(here[f'{block}/{norm}/scale'][r], there[f'{their}/{theirs}/scale'][s])
    if i in sparse:
      for leaf in ('experts/wi', 'router/kernel'):
        name = f'{block}/moe/{leaf}'
        equal(here[name][r], fresh[name][r])
        if i % 2:
          assert np.abs(here[name][r] - there[f'{their}/moe/{leaf}'][s]).max()
    else:
      name = f'{block}/ffn/ffn/wi'
      want = fresh[name][r] if i % 2 else there[f'{their}/ffn/ffn/wi'][s]
      equal(here[name][r], want)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'model.num_layers': 2}, "its layers are {'decoder': 4}, here .* 2}"),
    ({'model.d_head': 4}, r'layer_0/attention/key is \(16, 2, 8\) there'),
    ({'model.tied_head': False}, 'it has no embedding/head'),
  ],
  ids=str,
)
def test_dense_parameters_that_do_not_fit(
  corpus, teacher, tmp_path, fields, message
):
  fields = {
    'model.num_layers': 4,
    'moe.layers': 'none',
    'train.init_from': str(teacher),
    'train.init_dense': True,
  } | fields
  with pytest.raises(ValueError, match=message):
    loop.train(tiny.config(**corpus, **fields), str(tmp_path))


def test_masks_leave_the_optimizer_as_it_is():
  """Adafactor on the trained leaves is Adafactor of a model without others."""
  w = jax.random.normal(jax.random.key(0), (2, 3, 4))
  tree = {'moe': {'w': w}, 'ffn': {'w': w[0]}}
  dims = {'moe': {'w': 1}, 'ffn': {'w': 0}}
  fields = {'train.optimizer': 'adafactor(min_dim=3)', 'train.clip': 1.0}
  config = tiny.config(**fields, **{'train.trainable': 'moe'})
  c = config.train
  alone, _ = optimizers.make(
    c.optimizer, c.schedule, steps=1, clip=1.0, batch_dims={'moe': {'w': 1}}
  )
  tx = session_lib.make_optimizer(config, dims)[0]
  mask = tuning.trained(tree, 'moe')
  part = tuning.select(tree, mask)
  assert isinstance(part['ffn']['w'], optax.MaskedNode)
  updates, _ = tx.update(part, tx.init(tree), part)
  want = {'moe': tree['moe']}
  want, _ = alone.update(want, alone.init(want), want)
  np.testing.assert_array_equal(updates['moe']['w'], want['moe']['w'])
