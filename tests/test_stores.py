"""Paths that are none are refused in a line: object stores, empty names."""

import os
import pathlib

import jax
import pytest
from absl import flags

from experiments import cli
from moe_jax.training import loop
from tests import mains, tiny

PATHS = [
  (name, flag)
  for name, names in {
    'analyze': ['workdir', 'compare', 'text'],
    'bench': ['workdir'],
    'branch': ['workdir', 'from'],
    'chaos': ['workdir'],
    'convert': ['workdir', 'from', 'from_hf', 'to_hf'],
    'describe': ['hf_config'],
    'embed': ['from', 'out'],
    'ensemble': ['workdir', 'from'],
    'evaluate': ['workdir', 'against', 'replay'],
    'generate': ['workdir', 'out'],
    'parity': ['workdir'],
    'plan': ['loads'],
    'report': ['workdirs', 'workdir'],
    'sweep': ['workdir', 'pretrained', 'done'],
    'tables': ['dir'],
    'train': ['workdir'],
    'verdict': ['workdir', 'out', 'study'],
  }.items()
  for flag in names
]
# Text that names no file.
WORDS = {
  *(
    'allow',
    'allow_modules',
    'array_task',
    'baseline',
    'by',
    'capacity_factors',
  ),
  *('cases', 'checkpoints', 'coordinator_address', 'dispatch', 'domains'),
  *('dtype', 'experts', 'mesh', 'method', 'only', 'prompt', 'step'),
  *('stop', 'suite', 'worker'),
}
MAINS = sorted(
  path.stem
  for path in pathlib.Path('experiments').glob('*.py')
  if 'cli.run(main' in path.read_text()
)


@pytest.mark.parametrize('name', MAINS)
def test_whatever_is_text_is_a_path_or_known_to_be_none(name):
  with mains.loaded(name):
    text = {f for f in mains.ours() if _is_text(flags.FLAGS[f])}
    paths = {f for n, f in PATHS if n == name}
    assert text - WORDS == paths == cli._PATHS & mains.ours()


def _is_text(flag):
  return 'string' in flag.flag_type()


@pytest.mark.parametrize(('name', 'flag'), PATHS)
def test_a_main_refuses_a_url(name, flag, capsys):
  with mains.loaded(name):
    flags.FLAGS[flag].parse('some/folder,s3:/of/a/name')
    cli._check_paths()
    flags.FLAGS[flag].parse('gs://bucket/run')
    with pytest.raises(SystemExit) as e:
      cli._check_paths()
  assert e.value.code == 1
  line = f'error: --{flag}=gs://bucket/run is in an object store, which has no'
  assert capsys.readouterr().err.startswith(line)


@pytest.mark.parametrize(
  ('name', 'flag'), [('convert', 'from'), ('report', 'workdirs')]
)
def test_a_list_of_paths_has_no_empty_one(name, flag, capsys):
  """It would be the folder that one is in."""
  with mains.loaded(name):
    flags.FLAGS[flag].parse('some/run,')
    with pytest.raises(SystemExit):
      cli._check_paths()
  line = f'error: --{flag}=some/run, has an empty name in it\n'
  assert capsys.readouterr().err == line


@pytest.mark.parametrize(
  ('name', 'flag'), [('sweep', 'workdir'), ('embed', 'from'), ('tables', 'dir')]
)
def test_a_path_that_has_to_be_given_is_not_empty(name, flag, capsys):
  """As of a shell's variable that is not set."""
  with mains.loaded(name):
    flags.FLAGS[flag].parse('')
    with pytest.raises(SystemExit) as e:
      cli._check_paths()
  assert e.value.code == 1
  line = f'error: --{flag}= is empty; a path is wanted\n'
  assert capsys.readouterr().err == line


def test_mains_look_before_they_begin(monkeypatch):
  monkeypatch.setattr(cli, '_check_paths', lambda: 1 / 0)
  monkeypatch.setattr(cli.app, 'run', lambda main, **_: main(['x']))
  with pytest.raises(ZeroDivisionError):
    cli.run(None)


@pytest.mark.parametrize('index', [0, 1])
def test_training_refuses_in_each_process(index, tmp_path, monkeypatch):
  """Not in process 0 alone, which prepares the workdir."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(jax, 'process_index', lambda: index)
  with pytest.raises(ValueError, match='gs://b/run is no local path'):
    loop.train(tiny.config(), 'gs://b/run', restart=True)
  with pytest.raises(ValueError, match=r'cache is .*not of an object store'):
    loop.train(tiny.config(**{'data.cache': 'gs://b/cache'}), str(tmp_path))
  assert os.listdir(tmp_path) == []
