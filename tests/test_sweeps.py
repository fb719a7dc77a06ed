"""Sweeps: runs resume, fail, begin with others; the seeds of an arm share."""

import json

import pytest

from moe_jax.studies import (
  commands,
  origins,
  report,
  results,
  runner,
  study as study_lib,
)
from tests import fake_study

fake = fake_study.fake  # the fixture
path = fake_study.path  # the fixture


def test_a_sweep_resumes(path, tmp_path, fake):
  study, work = study_lib.load(path), tmp_path / 'w'
  fake.fail[('b', 1)] = KeyboardInterrupt()
  with pytest.raises(KeyboardInterrupt):
    fake_study.sweep(study, work)
  assert fake.ran == [('a', 0), ('b', 0), ('a', 1), ('b', 1)]
  # A kill in the middle of a line.
  with open(work / results.FILE, 'a') as f:
    f.write('{"arm": "b", "seed": 1, "sta')
  fake.ran, said = [], []
  assert not fake_study.sweep(study, work, said=said)
  assert fake.ran == [('b', 1), ('a', 2), ('b', 2)]
  rows = results.read(work / results.FILE)
  assert [(r['arm'], r['seed']) for r in rows] == [
    (a, s) for s in range(3) for a in 'ab'
  ]
  assert said[0] == '3 of 6 runs are finished already'
  fake.ran = []
  fake_study.sweep(study, work)
  assert not fake.ran


def test_seeds_of_an_arm_share_a_session(path, tmp_path, fake):
  fake_study.sweep(study_lib.load(path), tmp_path / 'w')
  assert fake.made == [7, 8]


def test_a_failing_run_is_recorded_and_the_rest_goes_on(path, tmp_path, fake):
  study, work = study_lib.load(path), tmp_path / 'w'
  fake.fail[('a', 1)] = RuntimeError(f'cannot read {tmp_path}/x/data.txt\nhere')
  fake.fail[('b', 2)] = FloatingPointError('loss is nan at step 3')
  said = []
  failed = fake_study.sweep(study, work, said=said)
  assert [(r['arm'], r['seed']) for r in failed] == [('a', 1)]
  assert failed[0]['error'] == 'RuntimeError: cannot read data.txt here'
  assert 'a seed 1  FAILED: RuntimeError: cannot read' in said[2]
  assert len(fake.ran) == 6
  assert fake.made == [7, 8, 7]  # a session that failed is not trusted
  # Divergence is a result; a failure is tried again.
  fake.ran = []
  assert not fake_study.sweep(study, work)
  assert fake.ran == [('a', 1)]
  latest = results.latest(results.read(work / results.FILE))
  assert latest['a', 1]['status'] == 'done'
  assert latest['b', 2]['status'] == 'diverged'


def test_other_results_are_refused(path, tmp_path, fake):
  study, work = study_lib.load(path), tmp_path / 'w'
  fake_study.sweep(study, work)
  changed = study_lib.load(path, flags={'train.batch_size': 16})
  with changed.config.unlocked():
    changed.config.train.batch_size = 16
  with pytest.raises(ValueError) as e:
    fake_study.sweep(changed, work)
  assert str(e.value) == (
    f"{work / results.FILE} holds results of arm 'a' with another config "
    '(train.batch_size is the default there, 16 here); choose another workdir'
  )
  other = fake_study.study_file(
    tmp_path, **{"'train.steps': 8": "'train.steps': 9"}
  )
  with pytest.raises(ValueError, match=r'train\.steps is 8 there, 9 here'):
    fake_study.sweep(study_lib.load(other), work)
  rows = results.read(work / results.FILE)
  (work / results.FILE).write_text(json.dumps(rows[0] | {'size': 'gpu'}))
  with pytest.raises(ValueError, match='results of toy:gpu, this is toy:refer'):
    fake_study.sweep(study, work)


def test_data_elsewhere_is_the_same_config(path, tmp_path, fake):
  """Where the data lies is the machine's; whether there is any is not."""
  study, other = study_lib.load(path), study_lib.load(path)
  for s, where in ((study, '/here'), (other, '/there')):
    with s.config.unlocked():
      s.config.data.dir = where
  fake_study.sweep(study, tmp_path / 'w')
  fake.ran = []
  fake_study.sweep(other, tmp_path / 'w')
  assert not fake.ran


def test_no_path_of_the_machine_is_written(path, tmp_path, fake):
  flags = {'data.dir': str(tmp_path / 'data'), 'data.cache': '/x/y'}
  study = study_lib.load(str(tmp_path / path), flags=flags)
  fake.fail[('a', 0)] = OSError(2, 'no such file', str(tmp_path / 'data/z.txt'))
  fake_study.sweep(study, tmp_path / 'w')
  rows = results.read(tmp_path / 'w' / results.FILE)
  text = (tmp_path / 'w' / results.FILE).read_text()
  assert str(tmp_path) not in text and '/x/y' not in text
  assert rows[0]['error'].endswith("'z.txt'")
  assert '--config.data.dir=DIR' in rows[1]['command']
  assert '--workdir=WORKDIR/runs/a/1' in rows[2]['command']
  assert rows[1]['metrics'].keys() == {'loss', 'count', 'nested/x'}
  assert rows[1]['data'] == 'f' * 16
  assert 'into the log' in (tmp_path / 'w/runs/a/1/log.txt').read_text()


def test_a_study_may_lie_outside(tmp_path, monkeypatch, fake):
  """Its commands and its verdict find it; what is kept has its name alone."""
  away, here, work = (tmp_path / n for n in ('away', 'here', 'w'))
  for folder in (away, here):
    folder.mkdir()
  monkeypatch.chdir(here)
  spec = f'{fake_study.study_file(away)}:quick'
  study = study_lib.load(spec)
  assert runner.plan(study, str(work), runner.runs(study)).startswith(
    f'python -m experiments.train --config={away}/toy.py:quick '
  )
  fake_study.sweep(study, work)
  rows = results.read(work / results.FILE)
  assert {r['path'] for r in rows} == {'toy.py'}
  assert rows[0]['command'].split()[3] == '--config=toy.py:quick'
  # Not a file of that name that happens to be here.
  (here / 'toy.py').write_text('')
  assert report.source(rows, work) == (spec, {})
  assert study_lib.load(report.source(rows, work)[0]).name == 'toy'
  report.write(study, rows, work)
  report.land(study, work, tmp_path / 'kept')
  for file in (tmp_path / 'kept').iterdir():
    assert str(tmp_path).encode() not in file.read_bytes(), file
  assert report.source(rows, tmp_path / 'kept')[0] == 'toy.py:quick'


def test_pretraining_comes_first_and_once(tmp_path, monkeypatch, fake):
  path = fake_study.study_file(
    tmp_path,
    first=", init_from='base'",
    more="  add('base', {'train.steps': 3}, stage='pretrain')",
  )
  study = study_lib.load(path)
  assert [r.key for r in runner.runs(study)][:2] == [('base', 0), ('a', 0)]
  assert len(runner.runs(study)) == 7
  assert next(r.key for r in runner.runs(study, ['a'])) == ('base', 0)
  part = runner.runs(study, task='0/1')
  assert ('base', 0) not in [r.key for r in part]
  with pytest.raises(ValueError, match="'base', which has not been run: run"):
    fake_study.sweep(study, tmp_path / 'w', part)
  command = commands.of(study, part[0], origins.Origins('W'), 'toy.py')
  assert '--config.train.init_from=W/runs/base/0' in command


BASES = """  add('base', {'train.steps': 3}, stage='pretrain')
  add('other', {'train.steps': 4}, stage='pretrain', init_from='base')
  add('c', {'train.steps': 7}, init_from='other')"""


def _tuned(tmp_path, **replaced):
  first = ", init_from='base', teacher='other'"
  return study_lib.load(
    fake_study.study_file(tmp_path, first=first, more=BASES, **replaced)
  )


def test_arms_get_the_workdirs_that_they_name(path, tmp_path, fake):
  study, work = _tuned(tmp_path), tmp_path / 'w'
  assert {r.arm.name for r in runner.runs(study, ['c'])} == {
    'base',
    'other',
    'c',
  }
  fake_study.sweep(study, work)
  order = list(dict.fromkeys(arm for arm, _ in fake.ran))
  assert order == ['base', 'other', 'a', 'b', 'c']
  for seed in range(3):
    fields = fake.fields['a', seed]
    assert fields['init_from'] == str(work / 'runs/base/0')
    assert fields['teacher'] == str(work / 'runs/other/0')
  assert fake.fields['c', 1]['init_from'] == str(work / 'runs/other/0')
  assert (
    fake.fields['b', 0]['init_from'] == fake.fields['b', 0]['teacher'] == ''
  )
  rows = results.latest(results.read(work / results.FILE))
  row = rows['a', 2]
  assert (row['init_from'], row['teacher']) == ('base', 'other')
  assert '--config.train.teacher=WORKDIR/runs/other/0' in row['command']
  assert str(tmp_path) not in (work / results.FILE).read_text()
  # 'a' and 'c' differ in what they begin with alone.
  assert row['config_digest'] != rows['c', 0]['config_digest']
  other = study_lib.load(
    fake_study.study_file(tmp_path, first=", init_from='other'", more=BASES)
  )
  with pytest.raises(ValueError, match=r'init_from is .base. there, .other. h'):
    fake_study.sweep(other, work)


def test_nothing_begins_with_what_failed(path, tmp_path, fake):
  """Its last checkpoint is of the middle of a run."""
  study, work = _tuned(tmp_path), tmp_path / 'w'
  fake.fail[('other', 0)] = FloatingPointError('loss is nan')
  failed = fake_study.sweep(study, work)
  assert {r['arm'] for r in failed} == {'a', 'c'}
  assert failed[0]['error'] == (
    "UserError: needs another run: 'other' is diverged"
  )
  assert {arm for arm, _ in fake.ran} == {'base', 'other', 'b'}


def test_what_is_named_comes_before(path, tmp_path):
  with pytest.raises(ValueError, match="teacher of arm a 'b'; valid: base, o"):
    _tuned(tmp_path, **{"teacher='other'": "teacher='b'"})
  text = BASES.replace(
    "stage='pretrain')", "stage='pretrain', teacher='other')"
  )
  with pytest.raises(ValueError, match="teacher of arm base 'other'"):
    study_lib.load(fake_study.study_file(tmp_path, more=text))


def test_pretrained_elsewhere(path, tmp_path, fake):
  """By config and seed, under another name; then only with that workdir."""
  there, work = tmp_path / 'there', tmp_path / 'w'
  names = BASES.replace("'base'", "'known'")
  other = study_lib.load(fake_study.study_file(tmp_path, more=names))
  fake.fail[('other', 0)] = RuntimeError('no')
  fake_study.sweep(other, there, runner.runs(other, ['other']))
  study = _tuned(tmp_path)
  call = dict(pretrained=str(there), say=lambda s: None)
  plan = runner.plan(study, str(work), runner.runs(study), str(there))
  assert plan.splitlines()[0].startswith('# finished: ')
  assert f'--config.train.init_from={there}/runs/known/0' in plan
  assert plan.splitlines()[1].startswith('python')  # failed there: run here
  assert not work.exists()
  fake.ran = []
  todo = runner.runs(study, ['a'])
  assert not runner.sweep(study, str(work), todo, **call)
  assert {arm for arm, _ in fake.ran} == {'other', 'a'}
  assert fake.fields['a', 1]['init_from'] == str(there / 'runs/known/0')
  assert fake.fields['a', 1]['teacher'] == str(work / 'runs/other/0')
  text = (work / results.FILE).read_text()
  assert str(tmp_path) not in text and 'PRETRAINED/runs/known/0' in text
  row = results.latest(results.read(work / results.FILE))['base', 0]
  assert row['pretrained'] == 'runs/known/0' and row['metrics']['loss'] == 9.0
  assert report.source(results.read(work / results.FILE), 'w')
  # Nothing is left of 'a'; 'c' needs no run elsewhere; a new seed of 'a' does.
  fake_study.sweep(study, work)
  more = study_lib.load('toy.py', seeds=4)
  with pytest.raises(ValueError, match='taken from another workdir: give --pr'):
    fake_study.sweep(more, work)
  fake.ran = []
  runner.sweep(more, str(work), runner.runs(more, ['a']), **call)
  assert fake.ran == [('a', 3)]
  with pytest.raises(ValueError, match='--pretrained=nowhere holds no results'):
    runner.sweep(more, str(work), todo, pretrained='nowhere')


def test_rows_kept_elsewhere_are_gone_on_from(path, tmp_path, fake):
  study, kept = study_lib.load(path), tmp_path / 'kept.jsonl'
  todo = runner.runs(study)
  call = dict(done=str(kept), say=lambda line: None)
  runner.sweep(study, str(tmp_path / 'one'), todo[:4], **call)
  assert len(results.read(kept)) == 4
  fake.ran = []
  runner.sweep(study, str(tmp_path / 'two'), todo, **call)
  assert fake.ran == [r.key for r in todo[4:]]
  for file in (kept, tmp_path / 'two' / results.FILE):
    assert [(r['arm'], r['seed']) for r in results.read(file)] == [
      r.key for r in todo
    ]


def test_what_others_begin_with_is_done_in_this_workdir(tmp_path, fake):
  """Its checkpoint is not in the file of rows; nor that of what it needs."""
  study, kept = _tuned(tmp_path), tmp_path / 'kept.jsonl'
  todo = runner.runs(study)
  call = dict(done=str(kept), say=lambda line: None)
  runner.sweep(study, str(tmp_path / 'one'), todo[:-1], **call)
  fake.ran = []
  again = runner.plan(study, str(tmp_path / 'two'), todo, done=str(kept))
  assert again.count('# finished') == len(todo) - 3
  runner.sweep(study, str(tmp_path / 'two'), todo, **call)
  assert fake.ran == [('base', 0), ('other', 0), todo[-1].key]
  fake.ran = []
  runner.sweep(study, str(tmp_path / 'three'), todo, **call)
  assert not fake.ran
