"""config.json of a workdir is believed field by field, or not at all."""

import json

import pytest

from configs import base
from moe_jax.errors import UserError
from moe_jax.runs import config_history, configs, schema, workdir


def test_the_schema_is_that_of_the_configs():
  found = configs.flatten(base.get_config())
  assert {k: type(v) for k, v in found.items()} == schema.FIELDS, (
    'a field of configs/base.py has no line in config_history.CHANGES'
  )


def read(tmp_path, change):
  config = configs.to_dict(base.get_config())
  change(config)
  (tmp_path / 'config.json').write_text(json.dumps(config))
  return workdir.load_config(tmp_path)


def setting(name, value):
  def change(config):
    *groups, last = name.split('.')
    for g in groups:
      config = config[g]
    config[last] = value

  return change


def without(group, name):
  return lambda config: config[group].pop(name)


CASES = {
  'text': (
    setting('train.steps', '9'),
    "train.steps is '9'; a whole number is",
  ),
  'bool': (setting('seed', True), 'seed is True; a whole number is'),
  'float': (setting('moe.d_ff', 2.5), 'moe.d_ff is 2.5; a whole number is'),
  'null': (setting('train.clip', None), 'train.clip is None; a number is want'),
  'flag': (
    setting('model.scan', 1),
    'model.scan is 1; true or false',
  ),
  'tuple': (
    setting('moe.balance', 'x'),
    "moe.balance is 'x'; a tuple is",
  ),
  'str': (setting('mesh', {}), 'mesh is {}; a text is wanted'),
  'missing': (without('moe', 'router'), 'moe.router is missing'),
  'group': (lambda c: c.pop('eval'), 'eval.batch_size is missing'),
  'value': (
    setting('data', 3),
    r'data\.\w+ is missing|is 3, no group',
  ),
  'near': (
    setting('train.step', 9),
    "unknown field of .*config.json 'train.step'.*mean 'train.steps'?",
  ),
  'top': (setting('sed', 9), "'sed'; valid: cpu_devices, mesh, seed; did you"),
  'decoder': (setting('moe.decoder', []), r'moe.decoder is \[\]; an object is'),
  'in_decoder': (
    setting('moe.decoder', {'d_ff': 'x'}),
    "moe.decoder.d_ff is 'x'; a whole number is wanted",
  ),
  'not_in_decoder': (
    setting('moe.decoder', {'dff': 2}),
    "config.json 'moe.dff'.*did you mean 'moe.d_ff'?",
  ),
  'old': (setting('moe.num_expert', 2), "'moe.num_expert'.*'moe.num_experts'?"),
}


@pytest.mark.parametrize('case', CASES)
def test_one_line_names_the_field(tmp_path, case):
  change, message = CASES[case]
  with pytest.raises(UserError, match=message) as e:
    read(tmp_path, change)
  assert '\n' not in str(e.value) and 'config' in str(e.value)


def test_what_is_whole_comes_back(tmp_path):
  """A study's own group is no field of a run's."""
  config = base.get_config()
  found = read(tmp_path, setting('tasks', {'small': 'cb', 'items': 1}))
  assert found.to_dict() == config.to_dict() and found.is_locked
  found = read(tmp_path, setting('train.clip', 1))
  assert found.train.clip == 1
  found = read(tmp_path, setting('moe.decoder', {'group_size': 8}))
  assert found.moe.decoder.group_size == 8


def test_a_group_is_no_value(tmp_path):
  (tmp_path / 'config.json').write_text('{"model": 5, "model.x": 1}')
  with pytest.raises(UserError, match=r'model\.x: model is 5, no group'):
    workdir.read_config(tmp_path)
  assert config_history.upgrade({'train': 3})['train'] == 3


@pytest.mark.parametrize(
  ('name', 'value', 'wanted'),
  [
    ('model.qk_norm', 'yes', "'yes'; true or false"),
    ('mesh', 3, '3; a text'),
    ('model.dropout', 'x', "'x'; a number"),
    ('model.num_layers', 10**9, '1000000000; a number up to 10000'),
    ('moe.d_ff', 2.0, '2.0; a whole number'),
  ],
)
def test_types_are_checked_wherever_a_config_comes_from(name, value, wanted):
  config = configs.to_dict(base.get_config())
  config = configs.from_dict(config).to_dict()
  setting(name, value)(config)
  with pytest.raises(UserError, match=f'config.{name} is {wanted} is wanted'):
    configs.validate(config)
