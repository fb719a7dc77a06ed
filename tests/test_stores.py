"""Paths that are none are refused in a line: object stores, empty names."""

import os

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
    'report': ['workdirs', 'workdir'],
    'sweep': ['workdir', 'pretrained'],
    'train': ['workdir'],
    'verdict': ['workdir', 'out'],
  }.items()
  for flag in names
]


@pytest.mark.parametrize(('name', 'flag'), PATHS)
def test_a_main_refuses_a_url(name, flag, capsys):
  with mains.loaded(name):
    assert {f for n, f in PATHS if n == name} == cli._PATHS & mains.ours()
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
