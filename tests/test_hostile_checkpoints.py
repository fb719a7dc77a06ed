"""Hugging Face checkpoints made to do harm: one line, and soon."""

import json
import os
import re
import struct

import pytest

from moe_jax.conversion import hub
from moe_jax.errors import UserError
from tests.golden import checkpoints

INDEX = 'model.safetensors.index.json'


def index(text):
  def change(directory):
    (directory / 'model.safetensors').rename(directory / 'a.safetensors')
    (directory / INDEX).write_text(text)

  return change


def names(file):
  return index(json.dumps({'weight_map': {'shared.weight': file}}))


def weights(data):
  def change(directory):
    (directory / 'model.safetensors').write_bytes(data)

  return change


def config(**fields):
  def change(directory):
    path = directory / 'config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))

  return change


def replaced(text):
  return lambda directory: (directory / 'config.json').write_text(text)


def header(size, text):
  return weights(struct.pack('<Q', size) + text)


CASES = {
  'above': (names('../other/model.safetensors'), 'is no file beside it'),
  'absolute': (names('/dev/zero'), "'/dev/zero' is no file beside it"),
  'dots': (names('..'), "'..' is no file|lacks shards: .."),
  'number': (names(3), '3 is no file beside it'),
  'null_byte': (names('a\0.safetensors'), 'is no file beside it'),
  'no_map': (index('{}'), 'has no weight_map'),
  'list_map': (index('{"weight_map": [1]}'), 'has no weight_map'),
  'list': (index('[]'), 'expected a JSON object'),
  'deep_index': (index('[' * 100_000), 'nested more than 64 deep'),
  'deep_config': (replaced('[' * 100_000), 'nested more than 64 deep'),
  'deep_closed': (
    replaced('{"a":' * 70 + '1' + '}' * 70),
    'nested more than 64 deep',
  ),
  'bytes': (lambda d: (d / 'config.json').write_bytes(b'\xff'), 'broken JSON'),
  'digits': (replaced('{"d_ff": ' + '9' * 5000 + '}'), 'broken JSON'),
  'empty': (weights(b''), 'cannot read .*model.safetensors'),
  'huge_header': (header(1 << 60, b'{}'), 'cannot read .*model.safetensors'),
  'deep_header': (header(99_999, b'[' * 99_999), 'cannot read .*model.safete'),
  'layers': (
    config(num_layers=60_000, num_decoder_layers=60_000),
    'num_layers is 60000, but there are',
  ),
  'more_layers': (
    config(num_layers=1 << 39, num_decoder_layers=1 << 39),
    'num_layers=549755813888 (a whole number up to 65536 is wanted)',
  ),
  'experts': (config(num_experts=1 << 39), 'num_experts is 549755813888'),
  'no_size': (config(num_experts='8'), "num_experts='8' (a whole number from"),
  'bool': (config(d_model=True), 'd_model=True (a whole number from 1'),
  'jitter': (
    config(router_jitter_noise="0, router='os.system'"),
    'router_jitter_noise="0, router=\'os.system\'" (a finite number',
  ),
}


@pytest.mark.parametrize('case', CASES)
def test_one_line(tmp_path, case):
  change, message = CASES[case]
  directory = checkpoints.write(tmp_path / 'one', 'tight')
  change(directory)
  with pytest.raises(UserError) as e:
    hub.opened(directory)
  said = str(e.value)
  assert message in said or re.search(message, said), said
  assert '\n' not in said and len(said) < 2000


def test_nothing_waits_for_a_fifo(tmp_path):
  directory = checkpoints.write(tmp_path / 'one', 'tight')
  (directory / 'config.json').unlink()
  os.mkfifo(directory / 'config.json')
  with pytest.raises(UserError, match=r'no config\.json'):
    hub.opened(directory)
