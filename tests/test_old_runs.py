"""What earlier code left is gone on with: a workdir, and half-done studies."""

import json
import pathlib
import tarfile

import pytest

from configs import base
from moe_jax.runs import (
  checkpoint,
  config_history,
  configs,
  workdir as workdir_lib,
)
from moe_jax.studies import (
  index,
  origins,
  report,
  results,
  runner,
  study as study_lib,
)
from moe_jax.training import loop, session as session_lib

KEPT = pathlib.Path(__file__).parent / 'golden' / 'workdir_v1.tar.xz'
STUDIES = {s['study']: s for s in index.read('experiments/results')}


@pytest.fixture
def old(tmp_path, monkeypatch):
  """The config.json of `golden.make_workdir`'s run, beside which we stand."""
  with tarfile.open(KEPT) as f:
    f.extractall(tmp_path, filter='data')
  monkeypatch.chdir(tmp_path)
  return json.loads(pathlib.Path('run/config.json').read_text())


def today():
  """Its config as one writes it today: what is new stays at its default."""
  config = base.get_config()
  theirs = configs.from_dict(workdir_lib.read_config('run'))
  with config.unlocked():
    config.update(theirs)
  return config


def lines(path):
  return [json.loads(x) for x in pathlib.Path(path).read_text().splitlines()]


def test_its_fields_are_known(old):
  """A field that is new, renamed or gone has a line in `config_history`."""
  now = configs.flatten(base.get_config())
  then = configs.flatten(config_history.upgrade(old))
  missing = sorted(now.keys() ^ then.keys())
  assert not missing, f'no line in config_history.CHANGES for {missing}'
  assert workdir_lib.changes('run', configs.to_dict(today())) == {}


class Unjudged:
  """In place of an Evaluator."""

  def __call__(self, *_):
    return {}

  floor = __call__


def test_it_goes_on_as_it_would_have(old):
  """Steps 3 and 4 are those of the code that made it, which went through."""
  before = pathlib.Path('run/config.json').read_bytes()
  first = lines('run/metrics.jsonl')
  session = session_lib.make(today(), 'run')
  # Both cost seconds, and all that is kept shows in the steps' losses.
  session.programs.update(rate=1.0, evaluate=Unjudged())
  summary = loop.train(session.config, 'run', session=session)
  rows, want = lines('run/metrics.jsonl'), lines('expected/metrics.jsonl')
  assert [r['step'] for r in rows] == [1, 2, 3, 4] and rows[:2] == first
  for row, frozen in zip(rows[2:], want[2:]):
    assert row['moe/load'] == frozen['moe/load']
    for name in ('loss', 'total_loss', 'grad_norm', 'moe/dropped'):
      assert row[name] == pytest.approx(frozen[name], rel=1e-5), name
  frozen = json.loads(pathlib.Path('expected/summary.json').read_text())
  for name in ('loss', 'parameters', 'steps'):
    assert summary[name] == pytest.approx(frozen[name], rel=1e-5), name
  assert pathlib.Path('run/config.json').read_bytes() == before
  meta = json.loads(pathlib.Path('run/checkpoints/4/meta.json').read_text())
  assert meta['data']['rows'] == 4 * 8
  assert checkpoint.steps('run/checkpoints') == [2, 4]


def test_fields_are_added_and_renamed(old, monkeypatch):
  """Read back, compared, and in groups; the file stays as it is."""
  history = (
    *config_history.CHANGES,
    config_history.Added('train.novelty', ()),
    config_history.Renamed('train.novelty', 'train.news'),
    config_history.Renamed('data', 'text'),
    config_history.Renamed('moe.d_ff', 'moe.width'),
  )
  old['moe']['decoder'] = {'d_ff': 16}
  pathlib.Path('run/config.json').write_text(json.dumps(old))
  config = json.loads(json.dumps(config_history.upgrade(old)))
  config['text'] = config.pop('data')
  config['train']['news'] = []
  for part in (config['moe'], config['moe']['decoder']):
    part['width'] = part.pop('d_ff')
  with pytest.raises(ValueError, match=r'data\.cache is "" there, absent here'):
    workdir_lib.prepare('run', config, restart=False, allow=())
  monkeypatch.setattr(config_history, 'CHANGES', history)
  assert workdir_lib.read_config('run') == config
  assert workdir_lib.prepare('run', config, restart=False, allow=())
  assert config_history.upgrade(config) == config
  config['train']['news'] = [1]
  with pytest.raises(ValueError, match=r'train\.news is \[\] there, \[1\] he'):
    workdir_lib.prepare('run', config, restart=False, allow=())


def kept(name, change=lambda config: None):
  """(rows, study) of a kept study, its config changed."""
  rows = results.read(pathlib.Path(STUDIES[name]['dir']) / results.FILE)
  spec, flags = report.source(rows, name)
  path, _, size = spec.partition(':')
  config = study_lib._module(path).get_config(size)
  with config.unlocked():
    config.update_from_flattened_dict(flags)
    change(config)
  return rows, study_lib.load(spec, config=config, flags=flags)


@pytest.mark.parametrize('name', STUDIES)
def test_kept_studies_go_on(name):
  """Rows know their arms by digests that the code of their day computed."""
  rows, study = kept(name)
  results.check(pathlib.Path(STUDIES[name]['dir']) / results.FILE, study)
  assert {r['arm'] for r in rows} <= {a.name for a in study.arms}


def new_field(config):
  config.train.novelty = 0.0


def test_pretraining_of_earlier_code_is_taken(tmp_path, monkeypatch):
  """Of another sweep, whose digests do not know of a new field."""
  rows, study = kept('batch_size', new_field)
  for row in rows:
    if (row['arm'], row['seed']) == ('dense_pretrained', 0):
      del row['pretrained']
      results.append(tmp_path / results.FILE, row)
  assert origins.find(study, [], 'w', str(tmp_path))[1] == []
  added = config_history.Added('train.novelty', 0.0)
  history = (*config_history.CHANGES, added)
  monkeypatch.setattr(config_history, 'CHANGES', history)
  found, (row,) = origins.find(study, [], 'w', str(tmp_path))
  assert (row['arm'], row['seed']) == ('dense_pretrained', 0)
  assert row['pretrained'] == 'runs/dense_pretrained/0'
  assert ('dense_pretrained', 0) in found.elsewhere


@pytest.mark.parametrize('name', ['sparse_dense', 'routers'])
def test_half_a_study_goes_on_with_a_new_field(name, tmp_path, monkeypatch):
  """One at a value that means 'as before', one under another name."""

  def change(novelty):
    def change(config):
      config.train.novelty = novelty
      config.train.max_norm = config.train.clip
      del config.train['clip']

    return change

  rows, study = kept(name, change(0.0))
  half = rows[: len(rows) // 2]
  for row in half:
    results.append(tmp_path / results.FILE, row)
  with pytest.raises(ValueError, match='with another config'):
    runner.plan(study, str(tmp_path), runner.runs(study))
  history = (
    *config_history.CHANGES,
    config_history.Added('train.novelty', 0.0),
    config_history.Renamed('train.clip', 'train.max_norm'),
  )
  monkeypatch.setattr(config_history, 'CHANGES', history)
  plan = runner.plan(study, str(tmp_path), runner.runs(study)).splitlines()
  todo = len(runner.runs(study))  # the study may have grown since
  left = todo - len(half)
  assert sum(x.startswith('# finished') for x in plan) == len(half)
  assert plan[-1].startswith(f'{left} of {todo} runs to do')
  with pytest.raises(ValueError, match='with another config'):
    _, other = kept(name, change(1.0))
    runner.plan(other, str(tmp_path), runner.runs(other))
