"""A run's directory and its config: what resumes, what is refused, and why."""

import json

import pytest
from ml_collections import config_dict

from moe_jax.runs import config_history, configs, workdir

CONFIG = {
  'seed': 0,
  'train': {'steps': 10, 'optimizer': 'sgd(momentum=0.5)', 'clip': 1.0},
  'eval': {'batch_size': 2, 'max_bytes': 0},
  'data': {'domains': ['a', 'b']},
}


@pytest.fixture(autouse=True)
def no_history(monkeypatch):
  """These configs are whole as they are, without the fields of real ones."""
  monkeypatch.setattr(config_history, 'CHANGES', ())


def changed(**fields):
  """CONFIG with 'train__steps' = a value, or without it for None."""
  config = json.loads(json.dumps(CONFIG))
  for name, value in fields.items():
    *groups, last = name.split('__')
    d = config
    for g in groups:
      d = d[g]
    if value is None:
      del d[last]
    else:
      d[last] = value
  return config


def prepare(path, config=CONFIG, restart=False, allow=()):
  return workdir.prepare(path, config, restart=restart, allow=allow)


def tree(path):
  return {
    p.relative_to(path).as_posix(): p.read_bytes()
    for p in path.rglob('*')
    if p.is_file() and p.name != 'lock'
  }


def test_first_run_then_resume(tmp_path):
  path = tmp_path / 'new' / 'run'
  assert prepare(path) is False
  text = (path / 'config.json').read_text()
  assert json.loads(text) == CONFIG
  assert text == json.dumps(CONFIG, indent=2, sort_keys=True) + '\n'
  assert prepare(path) is True
  assert prepare(path, changed(data__domains=('a', 'b'))) is True
  assert workdir.read_config(path) == CONFIG
  assert set(tree(path)) == {'config.json'}


def test_another_config_is_refused_field_by_field(tmp_path):
  prepare(tmp_path)
  before = tree(tmp_path)
  other = changed(
    train__steps=20, eval__batch_size=None, data__domains=['a'], extra='x'
  )
  with pytest.raises(ValueError) as e:
    prepare(tmp_path, other)
  message = str(e.value)
  assert '\n' not in message
  for part in (
    'train.steps is 10 there, 20 here',
    'eval.batch_size is 2 there, absent here',
    'data.domains is ["a", "b"] there, ["a"] here',
    'extra is absent there, "x" here',
  ):
    assert part in message
  assert 'clip' not in message and 'seed' not in message
  assert tree(tmp_path) == before


def test_allowed_fields_may_differ(tmp_path):
  prepare(tmp_path)
  other = changed(train__steps=20, eval__batch_size=8, eval__max_bytes=9)
  with pytest.raises(ValueError, match=r'train\.steps is 10') as e:
    prepare(tmp_path, other, allow=('eval', 'train.step', 'train.steps.x'))
  assert 'eval.' not in str(e.value)
  before = tree(tmp_path)
  assert prepare(tmp_path, other, allow=('eval', 'train.steps')) is True
  assert tree(tmp_path) == before  # until it is known that the run goes on
  workdir.adopt(tmp_path, other)
  assert workdir.read_config(tmp_path) == other
  assert json.loads((tmp_path / 'config_1.json').read_text()) == CONFIG
  assert prepare(tmp_path, CONFIG, allow=('eval', 'train.steps')) is True
  workdir.adopt(tmp_path, CONFIG)
  workdir.adopt(tmp_path, CONFIG)
  assert json.loads((tmp_path / 'config_2.json').read_text()) == other
  assert set(tree(tmp_path)) == {f'config{n}.json' for n in ('', '_1', '_2')}


def test_restart_moves_and_deletes_nothing(tmp_path):
  prepare(tmp_path)
  for name in ('checkpoints/5/state', 'metrics.jsonl', 'data/cache', 'notes'):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(name)
  old = tree(tmp_path)
  other = changed(train__steps=99)
  assert prepare(tmp_path, other, restart=True) is False
  new = tree(tmp_path)
  kept = {k: v for k, v in old.items() if k.startswith('data/')}
  moved = {f'previous_1/{k}': v for k, v in old.items() if k not in kept}
  config = new.pop('config.json')
  assert new == moved | kept and json.loads(config) == other
  assert prepare(tmp_path, CONFIG, restart=True) is False
  newer = tree(tmp_path)
  assert newer['previous_2/config.json'] == config
  assert moved.items() < newer.items()


def test_restart_leaves_a_directory_of_others_alone(tmp_path):
  (tmp_path / 'thesis').write_text('x')
  assert prepare(tmp_path, restart=True) is False
  assert set(tree(tmp_path)) == {'thesis', 'config.json'}


@pytest.mark.parametrize('text', ['{"seed": ', '', '[1]', '\xff'])
def test_a_broken_config_is_named(tmp_path, text):
  prepare(tmp_path)
  (tmp_path / 'config.json').write_text(text, encoding='latin-1')
  for call in (prepare, workdir.read_config):
    with pytest.raises(ValueError, match=r'cannot read .*/config\.json: ') as e:
      call(tmp_path)
    assert '\n' not in str(e.value)
  assert prepare(tmp_path, restart=True) is False
  assert (tmp_path / 'previous_1' / 'config.json').exists()


def test_checkpoints_without_a_config_are_refused(tmp_path):
  (tmp_path / 'checkpoints').mkdir()
  with pytest.raises(ValueError, match=r'has checkpoints but no config\.json'):
    prepare(tmp_path)
  with pytest.raises(ValueError, match=r'holds no run: no config\.json'):
    workdir.read_config(tmp_path)


def test_a_place_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  for path in (tmp_path / 'file', tmp_path / 'file' / 'run'):
    with pytest.raises(ValueError, match=r'workdir .* cannot be written') as e:
      prepare(path)
    assert '\n' not in str(e.value) and str(path) in str(e.value)
  with pytest.raises(ValueError, match='gs://b/run is no local path'):
    prepare('gs://b/run')
  # Of two users: a directory stands where the file should go.
  (tmp_path / 'run' / 'config.json').mkdir(parents=True)
  with pytest.raises(ValueError, match=r'cannot read .*config\.json'):
    prepare(tmp_path / 'run')


def full():
  return config_dict.ConfigDict(
    {
      'seed': 0,
      'mesh': 'auto',
      'model': {'kind': 'decoder', 'num_layers': 2, 'd_model': 8},
      'moe': {'num_experts': 4, 'capacity_factor': 1.25, 'layers': 'every(2)'},
      'data': {'domains': ('a', 'b'), 'weights': (1.0, 2.0), 'seq_len': 16},
      'train': {'steps': 5, 'clip': 1.0, 'z_loss': 0.0, 'eval_every': 0},
      'eval': {'batch_size': 2, 'max_bytes': 0},
    }
  )


def test_a_good_config_passes():
  config = full()
  configs.validate(config)
  configs.validate(configs.to_dict(config) | {'data': {}})
  with config.unlocked():
    config.moe.capacity_factor = 0.0  # Dropless.
  configs.validate(config)


@pytest.mark.parametrize(
  'name,value,message',
  [
    ('train.clip', float('nan'), 'config.train.clip is nan; a finite number'),
    ('train.clip', -1.0, 'config.train.clip is -1.0; a number, 0 or above'),
    ('train.clip', 'x', "config.train.clip is 'x'; a number, 0 or above"),
    ('train.z_loss', float('inf'), 'config.train.z_loss is inf'),
    ('moe.capacity_factor', float('-inf'), 'capacity_factor is -inf'),
    ('moe.capacity_factor', -1.0, 'capacity_factor is -1.0; a number above 0'),
    ('moe.capacity_factor', None, 'capacity_factor is None; a number above 0'),
    ('moe.capacity_factor', '1', "capacity_factor is '1'; a number above 0"),
    ('data.weights', (1.0, float('nan')), 'config.data.weights is nan'),
    ('data.weights', 1.0, 'config.data.weights is 1.0; a tuple is wanted'),
    ('data.domains', 'a', "config.data.domains is 'a'; a tuple is wanted"),
    ('moe.balance', 'none', "config.moe.balance is 'none'; a tuple is wanted"),
    ('data.domains', ['a'], r"domains is \['a'\]; a number, a string or a"),
    ('train.steps', 0, 'config.train.steps is 0; a number above 0'),
    ('train.steps', 1.5, 'config.train.steps is 1.5; a whole number'),
    ('train.steps', True, 'config.train.steps is True; a whole number'),
    ('train.steps', None, 'config.train.steps is None; a whole number'),
    ('model.d_model', -8, 'config.model.d_model is -8; a number above 0'),
    ('train.eval_every', -1, 'config.train.eval_every is -1; a number, 0'),
    ('data.cache', 'gs://b/c', "cache is 'gs://b/c'; a path of a file system"),
    ('seed', 0.5, 'config.seed is 0.5; a whole number'),
    ('mesh', object, 'config.mesh is .*; a number, a string or a tuple'),
    ('mesh', ('a', (1,)), 'config.mesh is .*; a number, a string or a tuple'),
  ],
)
def test_bad_values_are_named(name, value, message):
  config = configs.to_dict(full())
  config['data'] = {
    k: tuple(v) if k != 'seq_len' else v for k, v in config['data'].items()
  }
  configs.validate(config)
  *groups, last = name.split('.')
  d = config
  for g in groups:
    d = d[g]
  d[last] = value
  with pytest.raises(ValueError, match=message) as e:
    configs.validate(config)
  assert '\n' not in str(e.value)


def test_config_through_json(tmp_path):
  config = full()
  plain = configs.to_dict(config)
  assert plain == json.loads(json.dumps(plain))
  prepare(tmp_path, plain)
  assert json.loads((tmp_path / 'config.json').read_text())['data'] == {
    'domains': ['a', 'b'],
    'seq_len': 16,
    'weights': [1.0, 2.0],
  }
  got = configs.from_dict(workdir.read_config(tmp_path))
  assert got.to_dict() == config.to_dict()
  assert got.data.domains == ('a', 'b')
  configs.validate(got)
  with pytest.raises(AttributeError, match='num_expert'):
    got.moe.num_expert = 3
