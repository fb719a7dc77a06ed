"""What a program says and returns when its user, or its code, is wrong."""

import os
import pathlib
import subprocess
import sys

import pytest

from experiments import cli
from tests import tiny

ROOT = pathlib.Path(__file__).resolve().parents[1]

CONFIG = """
from ml_collections import config_dict

def get_config(arg=''):
  if arg == 'large':
    raise ValueError("unknown size 'large'; valid: tiny, small")
  if arg == 'bug':
    return {}['bug']
  if arg == 'type':
    return len(3)
  config = config_dict.ConfigDict({'train': {'steps': 3}, 'seed': 0})
  config.moe = {'group_size': 4, 'decoder': {}}
  config.name, config.rules = 'adamw(b1=0.9)', ('a()',)
  config.lock()
  return config
"""
PROGRAM = '''
"""Says hello to a config.

Costs 100% of a second.
"""
import sys
from absl import flags, logging
from ml_collections import config_flags
from experiments import cli
from moe_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file('config', None, 'The config file.')
_DO = flags.DEFINE_string('do', None, 'What to do.', required=True)

def fail():
  raise UserError('a bad value:\\n  3')

def main(argv):
  print(_CONFIG.value.train.steps, argv[1:])
  match _DO.value:
    case 'ours':
      fail()
    case 'peers':
      import atexit
      cli._peers = lambda: True
      atexit.register(print, 'waits for the others', file=sys.stderr)
      fail()
    case 'traced':
      import jax
      jax.eval_shape(fail)
    case 'library':
      import numpy as np
      np.zeros(3).reshape(2)
    case 'jax':
      import jax.numpy as jnp
      jnp.concatenate([])
    case 'builtin':
      int('x')
    case 'disk':
      raise OSError(28, 'No space left on device', 'w/metrics.jsonl')
    case 'saved':
      try:
        raise OSError(122, 'Disk quota exceeded')
      except OSError as e:
        raise RuntimeError(f'step 3 was not saved: {e}') from e
    case 'wrapped':
      raise ValueError('Error writing "x": OS error 28 No space left on device')
    case 'long':
      open(260 * 'n')
    case 'other':
      raise OSError(9, 'Bad file descriptor')
    case 'pipe':
      raise BrokenPipeError(32, 'Broken pipe')
    case 'missing':
      open('nowhere/x')
    case 'stopped':
      from moe_jax.errors import StoppedError
      raise StoppedError('SIGTERM: stopped after step 3', 143)
    case 'crash':
      import os
      from moe_jax.errors import StoppedError
      end = {'__del__': lambda self: os.abort()}
      sys.modules['at the very end'] = type('Threads', (), end)()
      raise StoppedError('SIGTERM: ended')
    case 'imported':
      import signal
      try:
        signal.raise_signal(signal.SIGTERM)
      except BaseException as e:
        raise ImportError('initialization failed') from e
    case 'interrupt':
      raise KeyboardInterrupt
    case 'SIGTERM' | 'SIGUSR1':
      import signal, time
      signal.raise_signal(getattr(signal, _DO.value))
      time.sleep(9)
    case 'decoder':
      moe = _CONFIG.value.moe
      print(moe.group_size, moe.decoder.to_dict())
    case 'three':
      try:
        int('x')
      except ValueError:
        logging.warning('mind %s', 'the step', exc_info=True)
      return 3

if __name__ == '__main__':
  cli.run(main)
'''


@pytest.fixture(scope='module')
def program(tmp_path_factory):
  """Runs the program with flags, in a directory that holds `cfg.py`."""
  folder = tmp_path_factory.mktemp('program')
  (folder / 'cfg.py').write_text(CONFIG)
  (folder / 'program.py').write_text(PROGRAM)

  def call(*flags, stdout=subprocess.PIPE):
    code = (
      f'import runpy, sys; sys.path.insert(0, {str(ROOT)!r}); '
      "sys.argv[0] = 'program.py'; "
      "runpy.run_path('program.py', run_name='__main__')"
    )
    return subprocess.run(
      [sys.executable, '-c', code, *flags],
      cwd=folder,
      stdout=stdout,
      stderr=subprocess.PIPE,
      text=True,
      timeout=60,
    )

  return call


@pytest.mark.parametrize(
  ('flags', 'line'),
  [
    (
      ['--config.trian.steps=3'],
      "--config.trian.steps=3: the config has no field 'trian'; did you mean "
      "'train'?",
    ),
    (
      ['--config.train.stps=3'],
      "--config.train.stps=3: the config has no field 'stps'; did you mean "
      "'steps'?",
    ),
    (['--config.zzz=3'], "--config.zzz=3: the config has no field 'zzz'"),
    (
      ['--config.seed.x=3'],
      "--config.seed.x=3: the config has no field 'seed.x'",
    ),
    (
      ['--config.train.steps=abc'],
      'flag --config.train.steps=abc: invalid literal for int() with base 10: '
      "'abc'; --help lists the flags",
    ),
    (
      ['--config=cfg.py:large'],
      "flag --config=cfg.py:large: unknown size 'large'; valid: tiny, small",
    ),
    (
      ['--config.name.learning_rate=0.1'],
      "--config.name.learning_rate=0.1: name is 'adamw(b1=0.9)', one value "
      'without fields; set it whole',
    ),
    (
      ['--config.seed=1', '--config.name.x.y=2'],
      "--config.name.x.y=2: name is 'adamw(b1=0.9)', one value without fields; "
      'set it whole',
    ),
    (
      ['--config.rules.weight=2'],
      "--config.rules.weight=2: rules is ('a()',), one value without fields; "
      'set it whole',
    ),
    (
      ['--config.rules[0]=b()'],
      "--config.rules[0]=b(): rules is ('a()',), one value without fields; "
      'set it whole',
    ),
    (['--config=no.py'], "No such file or directory: 'no.py'"),
    (
      ['--config=no.py', '--config.seed=1'],
      "No such file or directory: 'no.py'",
    ),
    (
      ['--doo=ok'],
      "Unknown command line flag 'doo'. Did you mean: do ?; --help lists the "
      'flags',
    ),
    (['more'], "unexpected argument 'more'; options are --name=value"),
    (['--do=ours'], 'a bad value: 3'),
    (['--do=peers'], 'a bad value: 3'),
    (['--do=traced'], 'a bad value: 3'),
    (['--do=missing'], "No such file or directory: 'nowhere/x'"),
    (['--do=disk'], "No space left on device: 'w/metrics.jsonl'"),
    (['--do=saved'], 'step 3 was not saved: [Errno 122] Disk quota exceeded'),
    (
      ['--do=wrapped'],
      'Error writing "x": OS error 28 No space left on device',
    ),
    (['--do=long'], f"File name too long: '{260 * 'n'}'"),
  ],
)
def test_the_users_mistakes_are_one_line(program, flags, line):
  done = program('--config=cfg.py', '--do=ok', *flags)
  assert (done.returncode, done.stderr) == (1, f'error: {line}\n')


def test_a_required_flag_is_named(program):
  done = program('--config=cfg.py')
  line = 'error: --do is required; --help lists the flags\n'
  assert (done.returncode, done.stderr) == (1, line)


@pytest.mark.parametrize(
  ('flag', 'kind'),
  [
    ('--do=library', 'ValueError: cannot reshape'),
    ('--do=jax', 'ValueError: Need at least one array'),
    ('--do=builtin', 'ValueError: invalid literal'),
    ('--do=other', 'OSError: [Errno 9] Bad file'),
    ('--do=pipe', 'BrokenPipeError: [Errno 32] Broken pipe'),
    ('--config=cfg.py:bug', "KeyError: 'bug'"),
    ('--config=cfg.py:type', 'TypeError: object of type'),
  ],
)
def test_defects_keep_their_traceback(program, flag, kind):
  done = program('--config=cfg.py', '--do=ok', flag)
  assert done.returncode == 1 and 'Traceback' in done.stderr
  assert kind in done.stderr


@pytest.mark.parametrize(
  ('do', 'code', 'line'),
  [
    ('stopped', 143, 'SIGTERM: stopped after step 3'),
    ('imported', 143, 'SIGTERM: ended'),
    ('crash', 143, 'SIGTERM: ended'),
    ('interrupt', 130, 'interrupted'),
    ('SIGTERM', 143, 'SIGTERM: ended'),
    ('SIGUSR1', 143, 'SIGUSR1: ended'),
  ],
)
def test_what_is_told_to_end_ends_in_one_line(program, do, code, line):
  done = program('--config=cfg.py', f'--do={do}')
  assert (done.returncode, done.stderr) == (code, f'{line}\n')


@pytest.mark.parametrize('unbuffered', ['', '1'])
def test_output_that_nobody_reads(program, monkeypatch, unbuffered):
  """As after `| head`; found when the program ends, if not before."""
  monkeypatch.setenv('PYTHONUNBUFFERED', unbuffered)
  reader, writer = os.pipe()
  os.close(reader)
  done = program('--config=cfg.py', '--do=ok', stdout=writer)
  os.close(writer)
  line = 'error: nobody reads the output any more\n'
  assert (done.returncode, done.stderr) == (1, line)


def test_fields_of_a_decoder_of_its_own():
  """Of the types that they have in `moe`, though none is there yet."""
  given = {'router': 'switch()', 'group_size': '8', 'capacity_factor': '2'}
  given |= {'route_padding': 'true', 'local_experts': "('zero()',)"}
  flags = [f'--config.moe.decoder.{k}={v}' for k, v in given.items()]
  rest, own = cli._of_decoder([flags[0], '--config.seed=1', *flags[1:]])
  assert rest == ['--config.seed=1'] and own == given
  config = tiny.config()
  cli._set_of_decoder(config, own)
  assert config.moe.decoder.to_dict() == {
    'router': 'switch()',
    'group_size': 8,
    'capacity_factor': 2.0,
    'route_padding': True,
    'local_experts': ('zero()',),
  }
  assert isinstance(config.moe.decoder.capacity_factor, float)
  for text, message in (
    ({'group_size': '2.5'}, 'group_size=2.5: the type int is wanted'),
    ({'group': '2'}, "group=2: the config has no field 'moe.group'"),
  ):
    with pytest.raises(ValueError, match=message):
      cli._set_of_decoder(config, text)


def test_a_field_of_a_decoder_by_flag(program):
  done = program(
    *('--config=cfg.py', '--do=decoder', '--config.moe.decoder.group_size=8'),
    '--config.moe.group_size=16',
  )
  assert done.stdout == "3 []\n16 {'group_size': 8}\n", done.stderr


def test_exit_codes_and_help(program):
  done = program('--config=cfg.py', '--do=ok', '--config.train.steps=7')
  assert (done.returncode, done.stdout) == (0, '7 []\n')
  done = program('--config=cfg.py', '--do=three')
  assert (done.returncode, done.stderr) == (3, 'WARNING: mind the step\n')
  for flag in ('--help', '-h'):
    done = program(flag)
    assert done.returncode == 0 and not done.stderr
    assert 'Says hello to a config.' in done.stdout
    assert '--do: What to do.' in done.stdout
    assert '--config: The config file.' in done.stdout
