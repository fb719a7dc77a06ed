"""A study file for tests, and runs that take no time."""

import math
import pathlib

import pytest

from moe_jax.studies import (
  runner,
)
from moe_jax.training import loop, session as session_lib

STUDY = '''"""A study for tests: two arms.

More.
"""
from configs import base

SEEDS = {{'reference': 3, 'quick': 3}}
SECONDS = {{'reference': 90, 'quick': 90}}
COLUMNS = (('loss', 'the loss', '.2f'), ('absent', 'none', '.2f'))


def get_config(arg='quick'):
  return base.get_config()


def sweep(add, size, config):
  add('a', {{'train.steps': 7}}{first})
  add('b', {{'train.steps': 8, 'moe.decoder.router': 'switch()'}})
{more}

CLAIMS = (
  dict(name='a_better', paper='P', table='table 1', sentence='A is better.',
       metric='loss', direction='lower', smallest_effect=0.1, arms=('a', 'b'),
       published={{'a': 1.5}}, seeds_needed=2),
  dict(name='same_count', paper='P', table='table 2', sentence='Same.',
       metric='count', direction='equal', smallest_effect=0.5, arms=('a', 'b'),
       kind='deterministic', seeds_needed=1),
  dict(name='spread', paper='P', table='table 3', sentence='Spread.',
       metric="deviation(metric='loss')", direction='higher',
       smallest_effect=0.0, arms=('a', 'b')),
)
FIGURES = (
  dict(file='f.png', kind='lines', title='T', x='x', y='y', metric='loss',
       series={{'s': ((1, 'a'), (2, 'b'), (3, 'b', 'absent'))}},
       published={{'s': ((1, 2.0), (2, 3.0))}}),
  dict(file='g.png', kind='points', title='T', y='y', metric='loss',
       series={{'s': (('one', 'a'), ('two', 'b'))}}),
  dict(file='h.png', kind='curves', title='T', x='x', y='y',
       series={{'A': 'a', 'B': 'b'}}),
)
'''


@pytest.fixture
def path(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  study_file(tmp_path)
  return 'toy.py'


def study_file(tmp_path, first='', more='', **replaced):
  text = STUDY.format(first=first, more=more)
  for old, new in replaced.items():
    assert old in text
    text = text.replace(old, new)
  file = tmp_path / 'toy.py'
  file.write_text(text)
  return str(file)


class Fake:
  """In place of training: what ran, and what each run answers."""

  def __init__(self, monkeypatch):
    self.made, self.ran, self.fail, self.fields = [], [], {}, {}
    monkeypatch.setattr(session_lib, 'make', self._make)
    monkeypatch.setattr(loop, 'train', self._train)

  def _make(self, config, workdir, allow_download):
    del workdir, allow_download
    self.made.append(config.train.steps)
    session = lambda: None
    session.data = lambda: None
    session.data.fingerprint = 'f' * 64
    return session

  def _train(self, config, workdir, *, allow_download, session):
    del allow_download, session
    arm, seed = pathlib.Path(workdir).parts[-2:]
    self.ran.append((arm, int(seed)))
    self.fields[arm, int(seed)] = dict(config.train.items())
    assert config.seed == int(seed)
    if error := self.fail.pop((arm, int(seed)), None):
      raise error
    print('into the log')
    base = {'a': 1.0, 'b': 2.0}.get(arm, 9.0)
    return {
      'loss': base + 0.01 * base * config.seed,
      'count': 5,
      'nested': {'x': 1.5},
      'mesh': 'text',
      'not_finite': math.nan,
      'flag': True,
      'curve': {'step': [1, 2], 'loss': [base + 1, base]},
    }


@pytest.fixture
def fake(monkeypatch):
  return Fake(monkeypatch)


def sweep(study, workdir, todo=None, said=None):
  todo = runner.runs(study) if todo is None else todo
  say = (said if said is not None else []).append
  return runner.sweep(study, str(workdir), todo, say=say)
