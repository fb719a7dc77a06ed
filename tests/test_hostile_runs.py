"""Workdirs made to do harm, or broken: one line, and what is whole is kept."""

import ast
import json
import os
import pathlib
import shutil

import pytest

import moe_jax
from moe_jax import json_files, manifest
from moe_jax.errors import UserError
from moe_jax.planning import loads
from moe_jax.plots import records, tables
from moe_jax.runs import (
  checkpoint,
  lock,
  resume,
  workdir as workdir_lib,
  writers,
)
from moe_jax.studies import index, report, results
from tests import mains
from tests.test_checkpoint import abstract, fill, small, value_of

# Of results.jsonl.
ROW = dict.fromkeys(
  'path study config_digest command commit date'.split(), 'x'
) | {
  'size': 'quick',
  'arm': 'a',
  'seed': 0,
  'stage': 'arm',
  'status': 'failed',
  'flags': {},
  'overrides': {},
  'seconds': 1.0,
  'machine': {'devices': 1, 'device': '', 'threads': 1, 'versions': {}},
}
ROOT = pathlib.Path(moe_jax.__file__).parents[1]
DEEP = '[' * 100_000


def test_json_is_read_in_one_place():
  """But what `dumps` has just made."""
  found = []
  for room in ('moe_jax', 'experiments'):
    for path in (ROOT / room).rglob('*.py'):
      for node in ast.walk(ast.parse(path.read_text())):
        if (
          isinstance(node, ast.Call)
          and ast.unparse(node.func) in ('json.loads', 'json.load')
          and not isinstance(node.args[0], ast.Call)
        ):
          found.append(path.name)
  assert found == ['json_files.py']


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('', 'x: broken JSON|x, line 1: broken JSON: Expecting value'),
    ('{"a":\n1,}', 'x, line 2: broken JSON: '),
    (b'{"\xff":1}', "x: broken JSON: 'utf-8' codec"),
    ('9' * 5000, 'x: broken JSON: Exceeds the limit'),
    (DEEP, 'x: JSON nested more than 64 deep'),
    ('[' * 65 + ']' * 65, 'x: JSON nested more than 64 deep'),
    ('{"a":[' * 33 + ']}' * 33, 'x: JSON nested more than 64 deep'),
  ],
)
def test_what_json_cannot_be(text, message):
  with pytest.raises(UserError, match=message):
    json_files.parse(text, 'x')
  wide = '[' + ','.join(['[[]]'] * 99) + ']'
  assert json_files.parse(wide, 'x') == json.loads(wide)
  assert json_files.parse('[' * 64 + ']' * 64, 'x')


def test_only_regular_files_are_read(tmp_path):
  os.mkfifo(tmp_path / 'fifo')
  (tmp_path / 'zero').symlink_to('/dev/zero')
  (tmp_path / 'long').write_text('{}' + ' ' * 30)
  for name in ('fifo', 'zero'):
    with pytest.raises(UserError, match=f'{name} is no regular file'):
      json_files.read(tmp_path / name)
    with pytest.raises(UserError, match=f'{name} is no regular file'):
      json_files.lines(tmp_path / name)
  with pytest.raises(UserError, match='has 32 bytes; at most 31 are read'):
    json_files.read_bytes(tmp_path / 'long', 31)


def named(name, size=0, digest='0' * 64):
  return json.dumps({'files': {name: [size, digest]}})


@pytest.mark.parametrize(
  ('text', 'fault'),
  [
    (named('/dev/zero'), "'/dev/zero' is no regular file in it"),
    (named('link'), "'link' is no regular file in it"),
    (named('fifo'), "'fifo' is no regular file in it"),
    (named('folder'), "'folder' is no regular file in it"),
    (named('../other'), "'../other' is no regular file in it"),
    (named('.'), "'.' is no regular file in it"),
    (named('a\0b'), r"'a\x00b' is no name of a file"),
    (named('\ud800'), r"'\ud800' is no name of a file"),
    (named('a', '3'), 'a has 1 bytes, not 3'),
    (named('a', 1, 7), 'a does not match its SHA-256'),
    (DEEP, 'no readable MANIFEST.json (UserError)'),
    ('{"files": [1]}', 'no readable MANIFEST.json (AttributeError)'),
  ],
)
def test_a_manifest_names_files_beside_it(tmp_path, text, fault):
  directory = tmp_path / 'one'
  (directory / 'folder').mkdir(parents=True)
  (tmp_path / 'other').write_text('')
  (directory / 'a').write_text('1')
  (directory / 'link').symlink_to('/dev/zero')
  os.mkfifo(directory / 'fifo')
  (directory / manifest.NAME).write_text(text)
  assert manifest.fault(directory) == fault


def test_a_deep_manifest_does_not_end_the_fall_back(tmp_path):
  fill(tmp_path, [1, 2])
  (tmp_path / '2' / manifest.NAME).write_text(DEEP)
  with checkpoint.Checkpointer(tmp_path, keep=3) as c:
    assert value_of(c.restore(abstract(small()))[0]) == 1


def test_a_copy_counts_for_what_it_is(tmp_path, caplog):
  """Whole, but of another step: it is not the newest, and evicts none."""
  fill(tmp_path, [1, 2])
  shutil.copytree(tmp_path / '1', tmp_path / '9')
  shutil.copytree(tmp_path / '1', tmp_path / '4')
  with checkpoint.Checkpointer(tmp_path, keep=2) as c:
    assert checkpoint.shapes(tmp_path) == checkpoint.shapes(tmp_path, 2)
    with pytest.raises(ValueError, match='9 is damaged: it is a copy of step'):
      c.restore(abstract(small()), step=9)
    c.save(3, small(3), {})
    c.wait()
    assert checkpoint.steps(tmp_path) == [2, 3, 4, 9]
    c.save(4, small(4), {})  # its place is free
    assert value_of(c.restore(abstract(small()))[0]) == 4
  assert checkpoint.steps(tmp_path) == [3, 4]
  assert sorted(os.listdir(tmp_path / '_quarantine')) == ['4', '9']
  assert 'it is a copy of step 1; moved to _quarantine/9' in caplog.text


def test_a_run_is_not_where_a_copy_says(tmp_path):
  config = {'train': {'steps': 5, 'checkpoint_every': 1}}
  workdir_lib.prepare(tmp_path, config, restart=False, allow=())
  workdir_lib.release(tmp_path)
  fill(tmp_path / 'checkpoints', [1, 2])
  shutil.copytree(tmp_path / 'checkpoints/1', tmp_path / 'checkpoints/9')
  assert resume.check(str(tmp_path), config) == {}


@pytest.mark.parametrize('text', ['', '{', '[]', '3', DEEP, '\udcff'])
def test_a_broken_summary(tmp_path, text):
  config = {'train': {'steps': 2, 'checkpoint_every': 1}}
  workdir_lib.prepare(tmp_path, config, restart=False, allow=())
  workdir_lib.release(tmp_path)
  fill(tmp_path / 'checkpoints', [2])
  raw = text.encode(errors='surrogateescape')
  (tmp_path / 'summary.json').write_bytes(raw)
  assert resume.finished(str(tmp_path), config) is None
  message = r'summary\.json.*; without this file the run is judged anew'
  with pytest.raises(UserError, match=message):
    resume.check(str(tmp_path), config)
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1}\n')
  with pytest.raises(UserError, match=r'summary\.json'):
    records.read(str(tmp_path))
  (tmp_path / 'summary.json').write_text('{}')  # of no steps
  assert resume.finished(str(tmp_path), config) is None
  assert resume.check(str(tmp_path), config) == {}


def test_broken_lines_of_metrics_and_results(tmp_path):
  path = tmp_path / writers.METRICS
  row = json.dumps(ROW | {'step': 1, 'loss': 2})
  path.write_text('\n'.join([row, DEEP, '']))
  with pytest.raises(UserError, match='line 2: JSON nested more than 64 deep'):
    writers.last(tmp_path, 'loss')
  with pytest.raises(UserError, match='line 2: JSON nested more than 64 deep'):
    writers.values(tmp_path, 'loss')
  assert len(results.read(path)) == 1
  with writers.Writer(tmp_path, start_step=1) as writer:
    writer.write(2, {'moe/layers': 3})  # a list, of a run of ours
  assert writers.values(tmp_path, 'step') == [1, 2]


STUDY = 'import pathlib\npathlib.Path({!r}).touch()\n'


@pytest.mark.parametrize(
  'path', ['evil.py', 'configs/../evil.py', '{}/evil.py']
)
def test_what_results_name_is_not_run(tmp_path, monkeypatch, path):
  monkeypatch.chdir(tmp_path)
  work, ran = tmp_path / 'w', tmp_path / 'ran'
  (tmp_path / 'evil.py').write_text(STUDY.format(str(ran)))
  for folder in (work, tmp_path / 'configs'):
    folder.mkdir()
  path = path.format(tmp_path)
  row = ROW | {'path': path, 'study': 'evil'}
  results.append(work / results.FILE, row)
  with pytest.raises(UserError, match=f'{path}.* --study={path}$'):
    mains.call('verdict', f'--workdir={work}')
  # As a sweep of one's own would leave it.
  results.append(work / results.FILE, row)
  (work / 'study.txt').write_text(f'{tmp_path}/evil.py\n')
  with pytest.raises(UserError, match=f'--study={tmp_path}/evil.py|{path}$'):
    mains.call('verdict', f'--workdir={work}')
  assert not ran.exists()
  with pytest.raises(UserError, match='is no study: it has no get_config'):
    mains.call('verdict', f'--workdir={work}', f'--study={tmp_path}/evil.py')
  assert ran.exists()


@pytest.mark.parametrize(
  ('change', 'fault'),
  [
    ({'arm': 3}, "'arm' is 3"),
    ({'seed': True}, "'seed' is True"),
    ({'status': 'over'}, "'status' is 'over'"),
    ({'status': 'done'}, "'metrics' is missing"),
    ({'metrics': {'loss': 'low'}}, "'metrics' is {'loss': 'low'}"),
    ({'metrics': {'loss': float('nan')}}, "'metrics' is {'loss': nan}"),
    ({'metrics': {'loss': 10**400}}, "'metrics' is {'loss': 1000"),
    ({'seconds': None}, "'seconds' is None"),
    ({'machine': {}}, "'machine' is {}"),
    ({'curve': {'step': [1], 'loss': []}}, "'curve' is {'step': [1], 'loss"),
    ({'curve': {'step': [], 'loss': []}}, "'curve' is {'step': [], 'loss"),
    ({'flags': []}, "'flags' is []"),
    ({'flags': {'x': float('inf')}}, 'a number in it is not finite'),
    ({'pretrained': '../x'}, "'pretrained' is '../x'"),
  ],
)
def test_rows_that_are_none(tmp_path, caplog, change, fault):
  path = tmp_path / results.FILE
  path.write_text('\n'.join([json.dumps(ROW), '', json.dumps(ROW | change)]))
  assert results.read(path) == [ROW]
  assert f'{path}: line 3 is no row: {fault}' in caplog.text


LOADS = {'step': 1, 'moe/layers': [0], 'moe/load': [[0.5, 0.5]]}
SCORE = dict.fromkeys('key label unit floor floor_label best'.split(), '')


@pytest.mark.parametrize(
  ('row', 'summary', 'message'),
  [
    ({'moe/load': [[1, 'x']]}, {}, "line 1: 'moe/load' is no list of loads"),
    ({'moe/load': [[10**400]]}, {}, "'moe/load' is no list of loads"),
    ({'moe/load': [[]]}, {}, "'moe/load' is no list of loads"),
    ({'moe/load': 3}, {}, "'moe/load' is no list of loads"),
    ({'moe/layers': ['a/b']}, {}, "for each of 'moe/layers'"),
    ({'moe/layers': [0, 1]}, {}, "for each of 'moe/layers'"),
    ({'step': True}, {}, "'step' is no integer"),
    ({'step': 10**400}, {}, "'step' is no integer"),
    ({}, {'problem': 3}, "'problem' does not say what scores"),
    ({}, {'problem': {'shown': [{}], 'loss_unit': ''}}, "'problem' does not"),
  ],
)
def test_records_that_are_none(tmp_path, row, summary, message):
  for name, value in (
    ('config.json', {}),
    ('summary.json', {'problem': {'shown': [SCORE], 'loss_unit': ''}}),
    ('metrics.jsonl', LOADS),
  ):
    (tmp_path / name).write_text(json.dumps(value))
  assert records.read(str(tmp_path)).loads()[1][0].tolist() == [[1.0, 1.0]]
  (tmp_path / 'metrics.jsonl').write_text(json.dumps(LOADS | row))
  (tmp_path / 'summary.json').write_text(json.dumps(summary))
  with pytest.raises(UserError, match=message):
    records.read(str(tmp_path))


def test_numbers_of_hundreds_of_digits_are_none(tmp_path):
  summary = {'seconds': 10**400, f'moe/layer_{"9" * 5000}/load_max': 1.0}
  assert 'seconds' not in tables.end_of_run(summary, {})
  (tmp_path / 'x').write_text(json.dumps([[10**400, 1]]))
  with pytest.raises(UserError, match='loads must be a list of lists'):
    loads.read(str(tmp_path / 'x'))


@pytest.mark.parametrize(
  'text', [b'{"host": "\xcc', b'{"host": "a", "pid": 1e999}']
)
def test_a_lock_of_other_bytes(tmp_path, text):
  (tmp_path / lock.FILE).write_bytes(text)
  with pytest.raises(UserError, match='cannot be read; --take_over'):
    lock.hold(tmp_path)


@pytest.mark.parametrize(
  'change',
  [{'claims': 3}, {'claims': [{}]}, {'claims': [3]}, {'size': 'x'}],
)
def test_kept_claims_that_are_none(tmp_path, change):
  (tmp_path / 'a').mkdir()
  path = ROOT / 'experiments/results/stability' / report.CLAIMS
  kept = json.loads(path.read_text())
  path = tmp_path / 'a' / report.CLAIMS
  path.write_text(json.dumps(kept))
  index.page(index.read(tmp_path))
  path.write_text(json.dumps(kept | change))
  with pytest.raises(UserError, match='holds no verdicts'):
    index.read(tmp_path)
  power = {'date': '2026', 'claims': []} | change
  (tmp_path / 'power.json').write_text(json.dumps(power))
  if 'claims' in change:
    with pytest.raises(UserError, match='does not say what can be tested'):
      report.decided(tmp_path, [])


def test_a_checkpoint_tells_what_it_was_trained_on():
  config = {'train': {'batch_size': 4}}
  assert resume.row({'data_step': 3, 'config': config}) == 12
  for data in ({}, {'rows': '3'}, {'rows': -1}, {'config': config}):
    with pytest.raises(UserError, match='does not tell what it was trained on'):
      resume.row(data)
