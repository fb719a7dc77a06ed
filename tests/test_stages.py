"""Studies of several stages: runs converted, trained on, judged together."""

import pathlib

import numpy as np
import pytest

from moe_jax.conversion import trees
from moe_jax.kernels import plain
from moe_jax.studies import (
  fairness,
  origins,
  results,
  rows as rows_lib,
  runner,
  stages,
  study as study_lib,
)
from moe_jax.training import embeddings, fresh_rules, session
from tests import fake_study, saved, tiny

fake = fake_study.fake  # the fixture

MORE = """  add('p', {}, stage='pretrain', seeds=2)
  add('q', {}, stage='pretrain', init_from='p', seeds=2)
  add('m', {}, sources=('p', 'q'), convert=('mix()', 'remove(experts=(1,))'))
  add('e', {}, sources=('p', 'q'), judge='bayes(top_k=1)')"""


class Data:
  fingerprint, domains = 'e' * 64, ('x', 'y')


def test_arms_are_made_of_others(tmp_path, monkeypatch, fake):
  """In order, with the seeds that take turns; rows say of what."""
  monkeypatch.chdir(tmp_path)
  fake_study.study_file(tmp_path, more=MORE)
  study, work = study_lib.load('toy.py'), tmp_path / 'w'
  made, asked = [], []

  def make(spec, sources, workdir, *, seed):
    made.append((spec, list(map(str, sources)), seed))
    (pathlib.Path(workdir) / 'checkpoints').mkdir(parents=True)
    return Converted

  class Converted:
    numbers = 7

  def judged(arm, config, begin):
    asked.append((arm.judge, config.seed, [str(b) for b in begin]))
    return {'loss': 1.0, 'tokens': 0}, Data

  monkeypatch.setattr(stages.making, 'make', make)
  monkeypatch.setattr(stages, 'judged', judged)
  assert not fake_study.sweep(study, work)
  of = lambda arm, seed: str(work / f'runs/{arm}/{seed}')
  assert ('bayes(top_k=1)', 2, [of('p', 0), of('q', 0)]) in asked
  assert ('bayes(top_k=1)', 1, [of('p', 1), of('q', 1)]) in asked
  first = of('m', 1) + '/start_0'
  assert ('mix()', [of('p', 1), of('q', 1)], 1) in made
  assert ('remove(experts=(1,))', [first], 1) in made
  assert fake.fields['m', 1]['init_from'] == of('m', 1) + '/start_1'
  found = results.latest(results.read(work / results.FILE))
  assert found['m', 1]['needs'] == [['p', 1], ['q', 1]]
  assert found['q', 1]['needs'] == [['p', 1]]
  assert (found['e', 0]['sources'], found['e', 0]['domains']) == (
    'p, q',
    ['x', 'y'],
  )
  command = found['m', 1]['command']
  assert command.count('experiments.convert') == 2
  assert command.index('remove') < command.index('experiments.train')
  assert '--config.train.init_from=WORKDIR/runs/m/1/start_1' in command
  assert 'experiments.ensemble' in found['e', 0]['command']
  # What a run was made of is part of what it is.
  digests = {r['config_digest'] for r in found.values()}
  assert len(digests) == len(study.arms)
  made.clear()
  study = study_lib.load('toy.py')
  assert not fake_study.sweep(study, work) and not made
  assert origins.closure(study, ['m']) == {'m', 'p', 'q'}


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    ("sources=('z',), judge='bayes()'", "source of arm m 'z'; valid: p"),
    ("sources=('p',)", 'has sources: it wants convert or judge'),
    ("convert='mix()'", 'converts or judges: it wants sources'),
    ("sources=('p',), convert='mix()', init_from='p'", 'and no init_from'),
    ("sources=('p',), judge='b()', rows=('x',)", 'rows of a router'),
    ("sources=('p',), judge='b()', teacher='p'", 'is judged, not trained'),
  ],
)
def test_arms_that_cannot_be_made(tmp_path, line, message):
  more = f"  add('p', {{}}, stage='pretrain')\n  add('m', {{}}, {line})"
  with pytest.raises(ValueError, match=message):
    study_lib.load(fake_study.study_file(tmp_path, more=more))


def test_rows_of_several_stages():
  good = {'needs': [['p', 0]], 'domains': ['x']}
  for name, wrong in (
    ('needs', [['p', '0']]),
    ('needs', 'p'),
    ('needs', [['p', 0, 1]]),
    ('domains', [3]),
    ('domains', 'x'),
  ):
    row = ROW | good
    assert rows_lib.fault(row) == ''
    assert rows_lib.fault(row | {name: wrong}).startswith(f"'{name}' is ")


ROW = dict.fromkeys(rows_lib._TEXTS, 'x') | {
  'status': 'done',
  'overrides': {},
  'flags': {},
  'seed': 0,
  'seconds': 1.0,
  'metrics': {},
  'machine': {'devices': 1, 'device': '', 'threads': 1, 'versions': {}},
}


def test_numbers_by_domain_that_claims_name_are_kept(tmp_path):
  path = fake_study.study_file(
    tmp_path, **{"metric='loss', direction": "metric='eval/x/b', direction"}
  )
  row = {'metrics': {'eval/x/b': 1.0, 'eval/y/b': 2.0, 'loss': 3.0}}
  kept = results.for_keeping(row, study_lib.load(path))['metrics']
  assert kept == {'eval/x/b': 1.0, 'loss': 3.0}
  assert results.for_keeping(row)['metrics'] == {'loss': 3.0}


@pytest.fixture(scope='module')
def seed(tmp_path_factory):
  root = tmp_path_factory.mktemp('embeddings')
  fields = saved.corpus(root) | {'mesh': 'auto()', 'moe.layers': 'none'}
  saved.run(tiny.config(**fields), root / 'seed')
  return root / 'seed'


@pytest.mark.slow
def test_embeddings_are_means_of_documents(seed, tmp_path):
  """Against hidden states that the table, by least squares, makes logits of."""
  path = tmp_path / 'rows.npy'
  embeddings.write(str(seed), ('a', 'b', 'a+b'), path)
  rows = np.load(path)
  assert rows.shape == (3, 16) and rows.dtype == np.float32
  lengths = np.linalg.norm(rows, axis=1)
  assert (lengths <= 1 + 1e-5).all() and (lengths > 0.1).all()
  assert np.abs(rows[0] - rows[1]).max() > 1e-3
  assert np.abs(rows[2] - rows[:2].mean(0)).max() < 0.1
  config = trees.read(seed).config.copy_and_resolve_references()
  with config.unlocked():
    config.data.domains = ('b',)
  own = session.make(config, str(seed), splits=('train',))
  state, _ = fresh_rules.of_run(own, seed)
  table_VD = np.asarray(state.params['embedding']['table'], np.float64)
  units = []
  for step in range(2):
    batch = own.data.batch(seed=0, batch_size=8, step=step)
    variables = {'params': state.params}
    logits, _ = own.model.apply(variables, own.put(batch), train=False)
    for logits_LV, segment_L in zip(np.asarray(logits), batch['segments']):
      h_LD = np.linalg.lstsq(table_VD, logits_LV.T, rcond=None)[0].T
      for s in set(segment_L.tolist()) - {0}:
        h_D = h_LD[segment_L == s].mean(0)
        units.append(h_D / np.linalg.norm(h_D))
  few = embeddings.of_run(str(seed), ('b',), documents=len(units))
  np.testing.assert_allclose(few[0], np.mean(units, 0), atol=1e-4)
  with pytest.raises(ValueError, match="'z'; valid: a, b"):
    embeddings.of_run(str(seed), ('z',))


@pytest.mark.slow
def test_a_study_from_seed_to_mixture(tmp_path, monkeypatch):
  """The real thing: branches, mixture, ensemble, soup, FlexOlmo's owners."""
  monkeypatch.setattr(plain, 'rate', lambda dtype: 1e9)
  fields = saved.corpus(tmp_path) | {
    'mesh': 'auto()',
    'moe.layers': 'none',
    'model.num_layers': 1,
    'train.steps': 2,
    'eval.max_bytes': 200,
  }
  file = tmp_path / 'several.py'
  file.write_text(
    STUDY.replace('FIELDS', repr({k: v for k, v in fields.items()}))
  )
  study, work = study_lib.load(str(file)), tmp_path / 'w'
  failed = fake_study.sweep(study, work, runner.runs(study))
  assert not failed, [r['error'] for r in failed]
  found = results.latest(results.read(work / results.FILE))
  spent = fairness.of(('btx', 1), found)
  assert [n for n, *_ in spent.stages] == ['seed', 'b_a', 'b_b', 'btx']
  assert spent.tokens == 4 * 2 * 8 * 16 and spent.data == ('a', 'b')
  table = lambda key: trees.read(work / 'runs' / key).rest['embedding/table']
  begun = [table(f'btx/{s}/start_0') for s in (0, 1)]
  assert not np.array_equal(*begun)  # each of its own seed's branches
  for s, start in enumerate(begun):
    mean = (table(f'b_a/{s}') + table(f'b_b/{s}')) / 2
    np.testing.assert_allclose(start, mean, atol=1e-6)
  # A run that shares programs with another begins with its own seed's.
  near = [np.abs(table('b_a/1') - table(f'seed/{s}')).max() for s in (0, 1)]
  assert near[1] < near[0] / 2
  bits = 'eval/bits_per_byte'
  for name in ('btm', 'soup', 'opted_out'):
    assert found[name, 0]['metrics'][bits] > 0
  for key in ('own_a/0', 'own_b/0'):  # frozen, to the bit
    before, after = (
      trees.read(work / 'runs' / k) for k in (f'{key}/start_0', key)
    )
    for name, v in before.layers[0].items():
      w = after.layers[0][name]
      if name.startswith('moe/experts'):
        np.testing.assert_array_equal(v[0], w[0])
        assert (v[1] != w[1]).any(), name
      elif name.startswith('moe/router'):
        np.testing.assert_array_equal(v[..., 0], w[..., 0])
      else:
        np.testing.assert_array_equal(v, w)


STUDY = '''"""A study of several stages."""
from tests import tiny

SEEDS = {'quick': 2}
CLAIMS = ()


def get_config(arg='quick'):
  return tiny.config(**FIELDS)


def sweep(add, size, config):
  add('seed', {}, stage='pretrain', seeds=2)
  for d in 'ab':
    add(f'b_{d}', {'data.domains': (d,)}, stage='pretrain', init_from='seed',
        seeds=2)
  both = ('b_a', 'b_b')
  moe = {'moe.layers': 'all', 'moe.num_experts': 2, 'moe.balance': ()}
  mixed = moe | {'moe.router': 'top_k(k=2)', 'moe.capacity_factor': 0.0}
  add('btx', mixed, sources=both, convert='mix(balance=())')
  add('btm', {}, sources=both, judge='bayes()')
  add('soup', {}, sources=both, convert='soup()', judge='bayes()')
  flex = mixed | {'moe.router': 'flex_olmo(k=2)',
                  'train.trainable': 'experts(of=(1,))'}
  up = "upcycle(num_experts=2, router='flex_olmo(k=2)')"
  for d in 'ab':
    add(f'own_{d}', flex | {'data.domains': (d,)}, stage='pretrain', seeds=1,
        sources=('seed',), convert=up, rows=('a+b', d))
  add('opted_out', {}, sources=('own_a', 'own_b'),
      convert=('flex()', 'remove(experts=(2,))'), judge='bayes()')
'''
