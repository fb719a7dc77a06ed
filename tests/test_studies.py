"""Studies: files, runs that resume, and what is written."""

import itertools
import json
import math
import pathlib

import pytest

from configs import base
from experiments import sweep as sweep_main
from moe_jax.plots import ablations
from moe_jax.studies import (
  origins,
  report,
  results,
  runner,
  study as study_lib,
  verdicts,
)
from moe_jax.training import loop, session as session_lib

STUDY = '''"""A study for tests: two arms.

More.
"""
from configs import base

SEEDS = {{'quick': 3}}
SECONDS = {{'quick': 90}}
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
  dict(file='g.png', kind='bars', title='T', y='y', metric='loss',
       series={{'s': (('one', 'a'), ('two', 'b'))}}),
  dict(file='h.png', kind='curves', title='T', x='x', y='y',
       series={{'A': 'a', 'B': 'b'}}),
)
'''


@pytest.fixture
def path(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  _study_file(tmp_path)
  return 'toy.py'


def _study_file(tmp_path, first='', more='', **replaced):
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
      'loss': base + 0.01 * config.seed,
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


def _sweep(study, workdir, todo=None, said=None):
  todo = runner.runs(study) if todo is None else todo
  say = (said if said is not None else []).append
  return runner.sweep(study, str(workdir), todo, say=say)


def test_a_study_is_read(path):
  study = study_lib.load(f'{path}:quick')
  assert (study.name, study.title) == ('toy', 'A study for tests: two arms')
  assert [a.seeds for a in study.arms] == [(0, 1, 2)] * 2
  assert study.config_of(study.arm('b'), 4).train.steps == 8
  assert study.config_of(study.arm('b'), 4).moe.decoder.router == 'switch()'
  assert study.config_of(study.arm('a'), 4).seed == 4
  assert study.config.train.steps == base.get_config().train.steps
  assert study_lib.load(path, seeds=2).arm('a').seeds == (0, 1)


@pytest.mark.parametrize(
  ('replaced', 'message'),
  [
    ({"'train.steps': 7": "'train.stepz': 7"}, "field of arm a 'train.stepz'"),
    ({"'b', {": "'a', {"}, "arm 'a' twice"),
    ({"'b', {": "'b/c', {"}, "arm 'b/c': a name of letters"),
    ({"arms=('a', 'b')": "arms=('a', 'z')"}, "'z'; valid: a, b"),
    ({"'higher'": "'up'"}, "'up'; valid: equal, higher, lower"),
    ({'smallest_effect=0.5': 'smallest_effect=0'}, 'needs a margin above 0'),
    ({'seeds_needed=2': 'seeds_needed=1'}, 'seeds_needed=1 is too few'),
    ({"paper='P', table='table 2'": "papr='P'"}, "unknown field of .*'papr'"),
    ({"paper='P', table='table 2', ": "paper='P', "}, "missing .*'table'"),
    ({"name='spread'": "name='a_better'"}, "claim 'a_better' twice"),
    ({'CLAIMS = (': 'OTHER = ('}, 'is no study: it has no CLAIMS'),
  ],
)
def test_a_wrong_study_says_why(tmp_path, replaced, message):
  path = _study_file(tmp_path, **replaced)
  with pytest.raises(ValueError, match=message):
    study = study_lib.load(path)
    study.config_of(study.arm('a'), 0)


def test_a_missing_study_or_size(path):
  with pytest.raises(ValueError, match=r'no study file nowhere\.py'):
    study_lib.load('nowhere.py')
  with pytest.raises(ValueError, match="size 'huge'; valid: gpu, paper, quick"):
    study_lib.load(f'{path}:huge')


def test_the_command_line_decides_arms(path, tmp_path):
  more = "  add(f'own_{config.train.steps}', {'data.dir': config.data.dir})"
  config = base.get_config()
  with config.unlocked():
    config.train.steps, config.data.dir = 77, 'x'
  study = study_lib.load(_study_file(tmp_path, more=more), config=config)
  assert study.arm('own_77').overrides == {'data.dir': 'x'}


def test_runs_are_arm_by_arm(path):
  study = study_lib.load(path)
  keys = [r.key for r in runner.runs(study)]
  assert keys == [(a, s) for a in 'ab' for s in range(3)]
  assert {r.arm.name for r in runner.runs(study, ['b'])} == {'b'}
  with pytest.raises(ValueError, match="arm of toy 'c'; valid: a, b"):
    runner.runs(study, ['c'])


@pytest.mark.parametrize('count', range(1, 9))
def test_array_tasks_are_a_partition(path, count):
  study = study_lib.load(path)
  parts = [
    [r.key for r in runner.runs(study, task=f'{i}/{count}')]
    for i in range(count)
  ]
  assert list(itertools.chain(*parts)) == [r.key for r in runner.runs(study)]
  sizes = [len(p) for p in parts]
  assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize('task', ['2/2', 'x', '1', '-1/2', '1/x'])
def test_a_wrong_task(path, task):
  with pytest.raises(ValueError, match='expected i/n'):
    runner.runs(study_lib.load(path), task=task)


def test_a_sweep_resumes(path, tmp_path, fake):
  study, work = study_lib.load(path), tmp_path / 'w'
  fake.fail[('b', 1)] = KeyboardInterrupt()
  with pytest.raises(KeyboardInterrupt):
    _sweep(study, work)
  assert fake.ran == [('a', 0), ('a', 1), ('a', 2), ('b', 0), ('b', 1)]
  # A kill in the middle of a line.
  with open(work / results.FILE, 'a') as f:
    f.write('{"arm": "b", "seed": 1, "sta')
  fake.ran, said = [], []
  assert not _sweep(study, work, said=said)
  assert fake.ran == [('b', 1), ('b', 2)]
  rows = results.read(work / results.FILE)
  assert [(r['arm'], r['seed']) for r in rows] == [
    (a, s) for a in 'ab' for s in range(3)
  ]
  assert said[0] == '4 of 6 runs are finished already'
  fake.ran = []
  _sweep(study, work)
  assert not fake.ran


def test_seeds_of_an_arm_share_a_session(path, tmp_path, fake):
  _sweep(study_lib.load(path), tmp_path / 'w')
  assert fake.made == [7, 8]


def test_a_failing_run_is_recorded_and_the_rest_goes_on(path, tmp_path, fake):
  study, work = study_lib.load(path), tmp_path / 'w'
  fake.fail[('a', 1)] = RuntimeError(f'cannot read {tmp_path}/x/data.txt\nhere')
  fake.fail[('b', 2)] = FloatingPointError('loss is nan at step 3')
  said = []
  failed = _sweep(study, work, said=said)
  assert [(r['arm'], r['seed']) for r in failed] == [('a', 1)]
  assert failed[0]['error'] == 'RuntimeError: cannot read data.txt here'
  assert 'a seed 1  FAILED: RuntimeError: cannot read' in said[1]
  assert len(fake.ran) == 6
  assert fake.made == [7, 7, 8]  # a session that failed is not trusted
  # Divergence is a result; a failure is tried again.
  fake.ran = []
  assert not _sweep(study, work)
  assert fake.ran == [('a', 1)]
  latest = results.latest(results.read(work / results.FILE))
  assert latest['a', 1]['status'] == 'done'
  assert latest['b', 2]['status'] == 'diverged'


def test_other_results_are_refused(path, tmp_path, fake):
  study, work = study_lib.load(path), tmp_path / 'w'
  _sweep(study, work)
  changed = study_lib.load(path, flags={'train.batch_size': 16})
  with changed.config.unlocked():
    changed.config.train.batch_size = 16
  with pytest.raises(ValueError) as e:
    _sweep(changed, work)
  assert str(e.value) == (
    f"{work / results.FILE} holds results of arm 'a' with another config "
    '(train.batch_size is the default there, 16 here); choose another workdir'
  )
  other = _study_file(tmp_path, **{"'train.steps': 8": "'train.steps': 9"})
  with pytest.raises(ValueError, match=r'train\.steps is 8 there, 9 here'):
    _sweep(study_lib.load(other), work)
  rows = results.read(work / results.FILE)
  (work / results.FILE).write_text(json.dumps(rows[0] | {'size': 'gpu'}))
  with pytest.raises(ValueError, match='results of toy:gpu, this is toy:quick'):
    _sweep(study, work)


def test_data_elsewhere_is_the_same_config(path, tmp_path, fake):
  """Where the data lies is the machine's; whether there is any is not."""
  study, other = study_lib.load(path), study_lib.load(path)
  for s, where in ((study, '/here'), (other, '/there')):
    with s.config.unlocked():
      s.config.data.dir = where
  _sweep(study, tmp_path / 'w')
  fake.ran = []
  _sweep(other, tmp_path / 'w')
  assert not fake.ran


def test_no_path_of_the_machine_is_written(path, tmp_path, fake):
  flags = {'data.dir': str(tmp_path / 'data'), 'data.cache': '/x/y'}
  study = study_lib.load(str(tmp_path / path), flags=flags)
  fake.fail[('a', 0)] = OSError(2, 'no such file', str(tmp_path / 'data/z.txt'))
  _sweep(study, tmp_path / 'w')
  rows = results.read(tmp_path / 'w' / results.FILE)
  text = (tmp_path / 'w' / results.FILE).read_text()
  assert str(tmp_path) not in text and '/x/y' not in text
  assert rows[0]['error'].endswith("'z.txt'")
  assert '--config.data.dir=DIR' in rows[1]['command']
  assert '--workdir=WORKDIR/runs/a/1' in rows[1]['command']
  assert rows[1]['metrics'].keys() == {'loss', 'count', 'nested/x'}
  assert rows[1]['data'] == 'f' * 16
  assert 'into the log' in (tmp_path / 'w/runs/a/1/log.txt').read_text()


def test_a_study_may_lie_outside(tmp_path, monkeypatch, fake):
  """Its commands and its verdict find it; what is kept has its name alone."""
  away, here, work = (tmp_path / n for n in ('away', 'here', 'w'))
  for folder in (away, here):
    folder.mkdir()
  monkeypatch.chdir(here)
  spec = f'{_study_file(away)}:quick'
  study = study_lib.load(spec)
  assert runner.plan(study, str(work), runner.runs(study)).startswith(
    f'python -m experiments.train --config={away}/toy.py:quick '
  )
  _sweep(study, work)
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
  path = _study_file(
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
    _sweep(study, tmp_path / 'w', part)
  command = runner.command(study, part[0], origins.Origins('W'), 'toy.py')
  assert '--config.train.init_from=W/runs/base/0' in command


BASES = """  add('base', {'train.steps': 3}, stage='pretrain')
  add('other', {'train.steps': 4}, stage='pretrain', init_from='base')
  add('c', {'train.steps': 7}, init_from='other')"""


def _tuned(tmp_path, **replaced):
  first = ", init_from='base', teacher='other'"
  return study_lib.load(
    _study_file(tmp_path, first=first, more=BASES, **replaced)
  )


def test_arms_get_the_workdirs_that_they_name(path, tmp_path, fake):
  study, work = _tuned(tmp_path), tmp_path / 'w'
  assert {r.arm.name for r in runner.runs(study, ['c'])} == {
    'base',
    'other',
    'c',
  }
  _sweep(study, work)
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
    _study_file(tmp_path, first=", init_from='other'", more=BASES)
  )
  with pytest.raises(ValueError, match=r'init_from is .base. there, .other. h'):
    _sweep(other, work)


def test_nothing_begins_with_what_failed(path, tmp_path, fake):
  """Its last checkpoint is of the middle of a run."""
  study, work = _tuned(tmp_path), tmp_path / 'w'
  fake.fail[('other', 0)] = FloatingPointError('loss is nan')
  failed = _sweep(study, work)
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
    study_lib.load(_study_file(tmp_path, more=text))


def test_pretrained_elsewhere(path, tmp_path, fake):
  """By config and seed, under another name; then only with that workdir."""
  there, work = tmp_path / 'there', tmp_path / 'w'
  names = BASES.replace("'base'", "'known'")
  other = study_lib.load(_study_file(tmp_path, more=names))
  fake.fail[('other', 0)] = RuntimeError('no')
  _sweep(other, there, runner.runs(other, ['other']))
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
  _sweep(study, work)
  more = study_lib.load('toy.py', seeds=4)
  with pytest.raises(ValueError, match='taken from another workdir: give --pr'):
    _sweep(more, work)
  fake.ran = []
  runner.sweep(more, str(work), runner.runs(more, ['a']), **call)
  assert fake.ran == [('a', 3)]
  with pytest.raises(ValueError, match='--pretrained=nowhere holds no results'):
    runner.sweep(more, str(work), todo, pretrained='nowhere')


def test_paths_of_tasks_have_names():
  flat = {'tasks.small': 'data/cb_train.jsonl', 'tasks.large': ''}
  flat['train.teacher'] = 'runs/x'
  assert results.placeholders(flat) == {
    'tasks.small': 'SMALL',
    'tasks.large': '',
    'train.teacher': 'TEACHER',
  }


def test_plan_shows_commands_and_time(path, tmp_path, fake):
  study, work = study_lib.load(path), tmp_path / 'w'
  text = runner.plan(study, 'W', runner.runs(study)).splitlines()
  assert len(text) == 7
  assert text[0] == (
    f'python -m experiments.train --config={path}:quick '
    '--config.train.steps=7 --config.seed=0 --workdir=W/runs/a/0'
  )
  assert text[-1] == (
    '6 of 6 runs to do, about 9 min in one process (90 s a run, as the study '
    'file says)'
  )
  _sweep(study, work, runner.runs(study, ['a']))
  text = runner.plan(study, str(work), runner.runs(study)).splitlines()
  assert text[2].startswith('# finished: ') and text[3].startswith('python')
  assert text[-1].startswith('3 of 6 runs to do, about ')
  assert text[-1].endswith('as the finished ones took)')


@pytest.mark.parametrize(
  ('seconds', 'text'),
  [(0.4, '0 s'), (89, '89 s'), (91, '2 min'), (7500, '2 h 05 min')],
)
def test_duration(seconds, text):
  assert runner.duration(seconds) == text


def test_verdicts_are_written_and_kept(path, tmp_path, fake):
  study, work, kept = study_lib.load(path), tmp_path / 'w', tmp_path / 'kept'
  _sweep(study, work)
  rows = results.read(work / results.FILE)
  found = report.write(study, rows, work)
  assert [v.outcome for v in found] == [
    'reproduced',
    'reproduced',
    'inconclusive',
  ]
  report.land(study, work, kept)
  assert {p.name for p in kept.iterdir()} == {
    'results.jsonl',
    'claims.json',
    'results.md',
    'f.png',
    'g.png',
    'h.png',
  }
  claims = json.loads((kept / 'claims.json').read_text())['claims']
  assert claims[0]['verdict'] == 'reproduced'
  assert claims[0]['low'] == pytest.approx(-1.0)
  text = (kept / 'results.md').read_text()
  assert '3 claims at size `quick`: 2 reproduced, 1 inconclusive.' in text
  assert '| a: 1.5 | -1 (-1 to -1) | < -0.1 | 3 | **reproduced** |' in text
  assert '| `a` | 3 | 1.01 ± 0.01 | - |' in text
  # Again from what was kept, with the same outcome.
  kept_rows = results.read(kept / results.FILE)
  assert [verdicts.judge(c, kept_rows).outcome for c in study.claims] == [
    c['verdict'] for c in claims
  ]
  spec, flags = report.source(results.read(kept / results.FILE), 'there')
  assert (spec, flags) == (f'{path}:quick', {})
  report.land(study, kept, kept)


def test_a_study_elsewhere_is_named_only(tmp_path):
  study = study_lib.load(_study_file(tmp_path))
  assert study.path == 'toy.py'


def test_results_of_nothing(tmp_path):
  with pytest.raises(ValueError, match='there holds no results'):
    report.source([], 'there')


def test_an_unknown_figure():
  with pytest.raises(ValueError, match="'pie'; valid: bars, curves, dots, l"):
    ablations.draw({'kind': 'pie'}, None, None)


def test_dots_are_sorted_rows_by_columns():
  """Axis by axis: the best row on top, one without a run left out."""
  found = {
    ('loss', 'a'): (2.0, 1.9, 2.1),
    ('loss', 'b'): (1.0, 0.9, 1.1),
    ('vio', 'b'): (0.5, 0.5, 0.5),
  }
  fig = ablations.draw(
    {
      'kind': 'dots',
      'title': 't',
      'columns': (('loss', 'held-out loss'), ('vio', 'MaxVio')),
      'series': {'first': 'a', 'second': 'b', 'missing': 'c'},
      'apart': {'second': 'it is another'},
    },
    lambda metric, arm: found.get((metric, arm)),
    None,
  )
  loss, vio = fig.axes
  assert [t.get_text() for t in loss.get_yticklabels()] == ['first', 'second']
  dots = lambda ax: [
    (float(l.get_xdata()[0]), float(l.get_ydata()[0]), l.get_markerfacecolor())
    for l in ax.lines
    if l.get_marker() == 'o'
  ]
  blue = ablations.style.COLOURS[0]
  assert dots(loss) == [(2.0, 0.0, blue), (1.0, 1.0, 'white')]
  assert dots(vio) == [(0.5, 1.0, 'white')]
  bars = [list(l.get_xdata()) for l in loss.lines if l.get_marker() != 'o']
  assert bars == [[1.9, 2.1], [0.9, 1.1]]
  assert 'second, hollow: it is another' in fig._supxlabel.get_text()


def test_jobs_share_the_runs(path, monkeypatch):
  """One process for what comes first, then a part of the runs for each."""
  calls = []

  class Process:
    def __init__(self, call):
      calls.append(call[-1])

    def wait(self):
      return len(calls) - 1

  monkeypatch.setattr(sweep_main.subprocess, 'Popen', Process)
  assert sweep_main._fan_out(study_lib.load(path), 2) == 1
  assert calls == ['--array_task=0/2', '--array_task=1/2']
