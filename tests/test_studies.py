"""Studies: files, arms, tasks, and what is written."""

import itertools
import json
import pathlib

import pytest

from configs import base
from moe_jax.plots import ablations
from moe_jax.studies import (
  estimates,
  pages,
  report,
  results,
  runner,
  study as study_lib,
  verdicts,
)
from tests import fake_study

fake = fake_study.fake  # the fixture
path = fake_study.path  # the fixture


def test_a_study_is_read(path):
  study = study_lib.load(f'{path}:quick')
  assert (study.name, study.title) == ('toy', 'A study for tests: two arms')
  assert [a.seeds for a in study.arms] == [(0, 1, 2)] * 2
  assert study.config_of(study.arm('b'), 4).train.steps == 8
  assert study.config_of(study.arm('b'), 4).moe.decoder.router == 'switch()'
  assert study.config_of(study.arm('a'), 4).seed == 4
  assert study.config.train.steps == base.get_config().train.steps
  assert study_lib.load(path, seeds=2).arm('a').seeds == (0, 1)


def test_notes_are_of_one_size(tmp_path):
  notes = "NOTES = {'reference': {'spread': 'why'}}\nFIGURES ="
  path = fake_study.study_file(tmp_path, **{'FIGURES =': notes})
  assert study_lib.load(f'{path}:reference').notes == {'spread': 'why'}
  assert study_lib.load(f'{path}:quick').notes == {}


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
    ({'FIGURES =': "NOTES = {'big': {}}\nFIGURES ="}, "size in NOTES .* 'big'"),
    ({'FIGURES =': "NOTES = {'gpu': {'n': ''}}\nFIGURES ="}, "NOTES .* 'n'"),
  ],
)
def test_a_wrong_study_says_why(tmp_path, replaced, message):
  path = fake_study.study_file(tmp_path, **replaced)
  with pytest.raises(ValueError, match=message):
    study = study_lib.load(path)
    study.config_of(study.arm('a'), 0)


def test_a_missing_study_or_size(path):
  with pytest.raises(ValueError, match=r'no study file nowhere\.py'):
    study_lib.load('nowhere.py')
  wanted = r"size of toy\.py 'huge'; valid: quick, reference"
  with pytest.raises(ValueError, match=wanted):
    study_lib.load(f'{path}:huge')
  assert study_lib.load(path).size == 'reference'
  text = pathlib.Path(path).read_text().replace("'reference': 3, ", '')
  pathlib.Path(path).write_text(text)
  assert study_lib.load(path).size == 'quick'


def test_the_command_line_decides_arms(path, tmp_path):
  more = "  add(f'own_{config.train.steps}', {'data.dir': config.data.dir})"
  config = base.get_config()
  with config.unlocked():
    config.train.steps, config.data.dir = 77, 'x'
  study = study_lib.load(
    fake_study.study_file(tmp_path, more=more), config=config
  )
  assert study.arm('own_77').overrides == {'data.dir': 'x'}


def test_runs_are_seed_by_seed_and_those_of_claims_first(path, tmp_path):
  study = study_lib.load(path)
  keys = [r.key for r in runner.runs(study)]
  assert keys == [(a, s) for s in range(3) for a in 'ab']
  more = "  add('d', {}); add('c', {}); add('e', {'train.steps': 9})"
  old = """metric="deviation(metric='loss')","""
  new = """metric="mean_over(metric='loss', arms=('a', 'c'))","""
  file = fake_study.study_file(tmp_path, more=more, **{old: new})
  keys = [r.key for r in runner.runs(study_lib.load(file))]
  assert keys[:9] == [(a, s) for s in range(3) for a in 'abc']
  assert keys[9:] == [(a, s) for s in range(3) for a in 'de']
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
  found = sorted(itertools.chain(*parts))
  assert found == sorted(r.key for r in runner.runs(study))
  sizes = [len(p) for p in parts]
  assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize('task', ['2/2', 'x', '1', '-1/2', '1/x'])
def test_a_wrong_task(path, task):
  with pytest.raises(ValueError, match='expected i/n'):
    runner.runs(study_lib.load(path), task=task)


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
    f'python -m experiments.train --config={path}:reference '
    '--config.train.steps=7 --config.seed=0 --workdir=W/runs/a/0'
  )
  assert text[-1] == (
    '6 of 6 runs to do, about 9 min in one process (90 s a run, as the study '
    'file says)'
  )
  fake_study.sweep(study, work, runner.runs(study, ['a']))
  text = runner.plan(study, str(work), runner.runs(study)).splitlines()
  assert text[2].startswith('# finished: ') and text[3].startswith('python')
  assert text[-1].startswith('3 of 6 runs to do, about ')
  assert text[-1].endswith('as the finished ones took)')


@pytest.mark.parametrize(
  ('seconds', 'text'),
  [(0.4, '0 s'), (89, '89 s'), (91, '2 min'), (7500, '2 h 05 min')],
)
def test_duration(seconds, text):
  assert estimates.duration(seconds) == text


def test_verdicts_are_written_and_kept(path, tmp_path, fake):
  study, work, kept = study_lib.load(path), tmp_path / 'w', tmp_path / 'kept'
  fake_study.sweep(study, work)
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
  # By hand: -1.01 of deviation 0.01, and t(2) = 4.30265.
  assert claims[0]['low'] == pytest.approx(-1.0348, abs=1e-4)
  text = (kept / 'results.md').read_text()
  assert '3 claims at size `reference`: 2 reproduced, 1 inconclusive.' in text
  assert (
    '-1.01 (-1.035 to -0.9852) | below | < -0.1 | 3 | **reproduced** |' in text
  )
  assert '| `a` | 3 | 1.01 ± 0.01 | - |' in text
  # Again from what was kept, with the same outcome.
  kept_rows = results.read(kept / results.FILE)
  assert [verdicts.judge(c, kept_rows).outcome for c in study.claims] == [
    c['verdict'] for c in claims
  ]
  spec, flags = report.source(results.read(kept / results.FILE), 'there')
  assert (spec, flags) == (f'{path}:reference', {})
  report.land(study, kept, kept)


def test_a_study_elsewhere_is_named_only(tmp_path):
  study = study_lib.load(fake_study.study_file(tmp_path))
  assert study.path == 'toy.py'


def test_results_of_nothing(tmp_path):
  with pytest.raises(ValueError, match='there holds no results'):
    report.source([], 'there')


def test_an_unknown_figure():
  with pytest.raises(ValueError, match="'pie'; valid: curves, dots, lines, p"):
    ablations.draw({'kind': 'pie'}, None, None)


def test_a_single_point_shows_its_interval():
  """As a bar, where the band of a line would have no width."""
  found = {'a': (2.0, 1.5, 2.25), 'b': (1.0, 0.5, 1.75), 'c': (3.0, 2.5, 4.0)}
  fig = ablations.draw(
    {
      'kind': 'lines',
      'title': 't',
      'y': 'loss',
      'metric': 'loss',
      'series': {'both': ((1, 'a'), (2, 'b')), 'one': ((4, 'c'),)},
    },
    lambda metric, arm: found[arm],
    None,
  )
  bars = [c for c in fig.axes[0].collections if hasattr(c, 'get_segments')]
  (bar,) = (b.get_segments()[0].tolist() for b in bars)
  assert bar == [[4, 2.5], [4, 4]]


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


def test_spread_has_one_degree_of_freedom_less():
  """(1 + 0 + 4 + 9) - 4 * 1.5^2 = 5; 5 / 3 is 1.29 squared."""
  assert pages._spread([1.0, 0.0, 2.0, 3.0], '.2f') == '1.50 ± 1.29'
