"""Runs that start from another run's parameters, a dense one's among them."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.models import by_layer, pattern
from moe_jax.runs import checkpoint, configs, workdir as workdir_lib
from moe_jax.training import (
  loop,
  session as session_lib,
  start,
)
from tests import test_tuning, tiny

corpus = test_tuning.corpus  # the fixture
fields = test_tuning.fields  # the fixture


def write_run(config, workdir):
  """What a run of this config would leave: its config and a checkpoint."""
  workdir_lib.prepare(workdir, configs.to_dict(config), restart=False, allow=())
  session = session_lib.make(config, workdir)
  with checkpoint.Checkpointer(workdir / 'checkpoints', 1) as c:
    c.save(1, test_tuning.noise(session.abstract_state, 5), {})
  return workdir


@pytest.fixture(scope='session')
def source(corpus, tmp_path_factory):
  """A sparse run whose balancing rules have a state."""
  config = tiny.config(**corpus, **{'moe.balance': test_tuning.BALANCE})
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


# From another run.

FINETUNE = {'moe.balance': test_tuning.BALANCE, 'data.seq_len': 32}


def started(config, workdir):
  """(fresh state, the state that a run starts from), both on its mesh."""
  session = session_lib.make(config, workdir)
  fresh = test_tuning.noise(session.abstract_state, 6)
  state = start.load(session, str(workdir))(fresh)
  where = jax.tree.map(lambda v: v.sharding, session.abstract_state)
  assert jax.tree.map(lambda v: v.sharding, state) == where
  return test_tuning.named(fresh), test_tuning.named(state)


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


@pytest.mark.slow
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
      test_tuning.KINDS['encoder_decoder'],
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


def test_a_view_is_by_layer():
  """Prefix, two repeats and suffix, filled with their layer's number."""
  at = lambda sparse: {'s': pattern.places(pattern.split(sparse))}
  sparse, dense = at((False, True, False, True, True)), at((False,) * 5)
  one = lambda *v: {'w': np.array(v, np.float32)}
  tree = {
    's': {
      'period': {'block_0': one(0, 2), 'block_1': one(1, 3)},
      'suffix_0': one(4),
      'final_norm': one(9),
    },
    'embedding': one(7),
  }
  found = by_layer.view(tree, sparse)
  for i in range(5):
    np.testing.assert_array_equal(found[f's/layer_{i}/w'].reshape(-1), [i])
  assert len(found) == 7 and found['embedding/w'] == 7
  scanned = {'s': {'period': {'block_0': one(0, 1, 2, 3, 4)}}}
  assert by_layer.view(scanned, dense)['s/layer_3/w'] == 3
  new = by_layer.replace(tree, {'s/layer_2/w': jnp.float32(20)}, sparse)
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
  fields = DEPTH | {
    'train.init_from': str(teacher),
    'moe.balance': test_tuning.BALANCE,
  }
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
