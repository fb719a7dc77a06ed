"""Reports, comparisons and tables, drawn from synthetic records."""

import html.parser
import json
import math
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from moe_jax.plots import (
  records,
  report,
  tables,
)

ROOT = pathlib.Path(__file__).resolve().parents[1]

SUMMARY = {
  'name': 'tiny',
  'eval/bits_per_byte': 1.75,
  'eval/bits_per_byte_low': 1.7,
  'eval/bits_per_byte_high': 1.8,
  'eval/bigram_bits_per_byte': 3.5,
  'eval/english/bits_per_byte': 1.5,
  'eval/english/bits_per_byte_low': 1.45,
  'eval/english/bits_per_byte_high': 1.55,
  'eval/english/bigram_bits_per_byte': 3.25,
  'eval/english/documents': 12,
  'eval/english/bytes': 34567,
  'eval/python/bits_per_byte': 2.0,
  'eval/python/bits_per_byte_low': 1.875,
  'eval/python/bits_per_byte_high': 2.125,
  'eval/python/bigram_bits_per_byte': 1.9,
  'eval/python/documents': 8,
  'eval/python/bytes': 1000,
  'moe/dropped': 0.0125,
  'moe/load_max': 1.25,
  'moe/layer_11/load_max': 1.2,
  'moe/layer_3/load_max': 1.3,
  'tokens_per_second': 41234.4,
  'mfu': 0.3125,
  'parameters': 28_412_928,
  'steps': 2000,
  'mesh': 'data=1,fsdp=2,expert=4,model=1',
}


def write_run(
  path, *, dense=False, logs=40, experts=8, summary=True, drop=(), **changes
):
  """Writes the records of a run; `drop` are metrics that it lacks."""
  rng = np.random.default_rng(0)
  path.mkdir(parents=True, exist_ok=True)
  config = {'seed': 0, 'train': {'steps': 10 * logs}, 'moe': {'layers': [1, 3]}}
  (path / 'config.json').write_text(json.dumps(config))
  rows = []
  for i in range(1, logs + 1):
    row = {
      'step': 10 * i,
      'loss': 6.0 / i + rng.normal(0, 0.1),
      'learning_rate': 1e-3 / i,
      'grad_norm': 1.0 + 1.0 / i,
      'tokens_per_second': 4e4,
    }
    if not dense:
      load_ME = rng.dirichlet(np.full(experts, 5.0), size=2)
      row['moe/dropped'] = 0.1 / i
      row['moe/load_max'] = float(experts * load_ME.max(axis=1).mean())
      row['moe/load'] = load_ME.tolist()
      row['moe/layers'] = [1, 3]
      row['balance/switch_loss'] = 1.1
      row['router/entropy'] = 1.5
    if i % 10 == 0 or i == logs:
      row['eval/bits_per_byte'] = 2.0 + 1.0 / i
      row['eval/english/bits_per_byte'] = 1.5 + 1.0 / i
    rows.append({k: v for k, v in row.items() if k not in drop})
  lines = [json.dumps(r) + '\n' for r in rows]
  (path / 'metrics.jsonl').write_text(''.join(lines))
  if summary:
    kept = {k: v for k, v in SUMMARY.items() if not dense or k[:4] != 'moe/'}
    (path / 'summary.json').write_text(json.dumps({**kept, **changes}))
  return str(path)


@pytest.fixture(autouse=True)
def pages_alone(monkeypatch):
  """Pictures cost as much as pages; test_figures.py looks at them."""
  monkeypatch.setattr(report.style, 'png', lambda fig, path: None)


class Page(html.parser.HTMLParser):
  """Checks that tags are balanced; keeps ids, references and text."""

  VOID = ('meta', 'br', 'img', 'link', 'hr')

  def __init__(self, path):
    super().__init__()
    self.open, self.ids, self.refs, self.words = [], [], [], []
    self.tags = []
    self.source = pathlib.Path(path).read_text(encoding='utf-8')
    self.feed(self.source)
    self.close()
    assert not self.open, f'never closed: {self.open}'
    self.text = ' '.join(' '.join(self.words).split())

  def handle_starttag(self, tag, attributes):
    self.handle_startendtag(tag, attributes)
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attributes):
    self.tags.append(tag)
    for name, value in attributes:
      if name == 'id':
        self.ids.append(value)
      if name in ('src', 'href', 'xlink:href'):
        self.refs.append(value)
      self.refs += re.findall(r'url\(([^)]*)\)', value or '')

  def handle_endtag(self, tag):
    assert self.open and self.open[-1] == tag, (tag, self.open)
    self.open.pop()

  def handle_data(self, data):
    self.words.append(data)


def check_page(path) -> Page:
  """Stands alone: nothing is fetched, every reference is resolved."""
  found = Page(path)
  assert (
    'http' not in found.source
    and '//' not in found.source.replace('base64,', '').split('<body>')[0]
  )
  assert 'script' not in found.tags and 'link' not in found.tags
  assert len(found.ids) == len(set(found.ids))
  for ref in found.refs:
    assert ref.startswith('data:image/png') or ref[1:] in found.ids, ref
  return found


def test_report_of_an_moe_run(tmp_path):
  found = check_page(report.write(write_run(tmp_path / 'moe')))
  assert found.tags.count('svg') == 5
  assert found.tags.count('image') >= 2  # a heat map a MoE layer
  for words in (
    'english 12 34,567 1.500 1.450 to 1.550 3.250 -1.750',
    'python 8 1,000 2.000 1.875 to 2.125 1.900 +0.100',
    'overall 20 35,567 1.750 1.700 to 1.800 3.500 -1.750',
    'parameters 28.4M',
    'mesh data=1,fsdp=2,expert=4,model=1',
    'MFU, of the measured matmul 31.25 %',
    'dropped in training 1.25 %',
    'load max/mean, layer 3 1.30 load max/mean, layer 11 1.20',
    'Training loss',
    'cross-entropy, nats per token',
    'Layer 1',
    'Layer 3',
    'Dropped assignments',
    'Balance: switch_loss',
    'Router entropy',
    'Learning rate',
    'Gradient norm',
    'Throughput',
    'finished at step 400',
    '"steps": 400',
  ):
    assert words in found.text, words


def test_report_of_a_dense_run(tmp_path):
  found = check_page(report.write(write_run(tmp_path / 'dense', dense=True)))
  assert found.tags.count('svg') == 3
  for words in ('Layer', 'Dropped', 'dropped', 'Routing', 'Balance'):
    assert words not in found.text, words


@pytest.mark.parametrize(
  'drop',
  [
    *(
      pytest.param(v, marks=pytest.mark.slow)
      for v in (
        ('moe/layers', 'moe/dropped', 'learning_rate'),
        ('loss', 'router/entropy', 'balance/switch_loss'),
        ('eval/bits_per_byte', 'eval/english/bits_per_byte', 'grad_norm'),
        ('moe/load', 'moe/load_max', 'tokens_per_second'),
      )
    ),
    (
      'loss', 'learning_rate', 'grad_norm', 'tokens_per_second', 'moe/dropped',
      'moe/load', 'moe/load_max', 'balance/switch_loss', 'router/entropy',
      'eval/bits_per_byte', 'eval/english/bits_per_byte',
    ),
  ],
)  # fmt: skip
def test_report_copes_with_missing_metrics(tmp_path, drop):
  workdir = write_run(tmp_path / 'run', drop=drop, summary=False)
  found = check_page(report.write(workdir))
  assert 'not finished' in found.text
  assert ('Layer 0' in found.text) == ('moe/layers' in drop)
  assert ('Training loss' in found.text) == ('loss' not in drop)
  check_page(report.compare([workdir, workdir], tmp_path))
  report.readme_png(workdir, str(tmp_path / 'a.png'))


def test_report_of_one_log_line(tmp_path):
  workdir = write_run(tmp_path / 'run', logs=1, experts=4)
  found = check_page(report.write(workdir))
  assert 'finished at step 10;' in found.text and 'Layer 1' in found.text


def test_report_of_numbers_that_are_none(tmp_path):
  workdir = write_run(tmp_path / 'run', logs=3, mfu=None)
  path = tmp_path / 'run' / 'metrics.jsonl'
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  for row in rows:
    row['grad_norm'] = math.nan
    row['tokens_per_second'] = None
  rows[1]['loss'] = math.inf
  rows[2]['loss'] = None
  rows[0]['moe/load'] = [[0.5, 0.5], [1.0, 0.0]]  # resumed with more experts
  path.write_text('\n'.join(json.dumps(r) for r in rows))
  found = check_page(report.write(workdir))
  assert 'MFU' not in found.text
  run = records.read(workdir)
  assert np.isnan(run.series('loss')[1]).tolist() == [False, True, True]
  assert run.loads()[0].tolist() == [20, 30]


def test_idle_experts_and_names_that_are_markup(tmp_path):
  name = '_<b>$x$ & "y"</b>'
  workdir = write_run(tmp_path / 'run', experts=2, name=name)
  path = tmp_path / 'run' / 'metrics.jsonl'
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  for row in rows:
    row['moe/load'] = [[1.0, 0.0], [0.0, 1.0]]
    row['eval/_$a_<i>/bits_per_byte'] = 2.0
  path.write_text('\n'.join(json.dumps(r) for r in rows))
  found = check_page(report.write(workdir))
  assert name in found.text and 'busiest 2.00x' in found.text
  assert '_$a_<i>' in found.text and 'i' not in found.tags
  other = write_run(tmp_path / 'other')
  found = check_page(report.compare([workdir, other], str(tmp_path)))
  assert 'b' not in found.tags
  # The head of the table, and the legends of five figures.
  assert [w.strip() for w in found.words].count(name) == 6


def test_the_same_records_give_the_same_page(tmp_path):
  workdir = write_run(tmp_path / 'run', logs=5)
  first = pathlib.Path(report.write(workdir)).read_text()
  second = report.write(workdir, str(tmp_path / 'made' / 'here'))
  assert second == str(tmp_path / 'made' / 'here' / 'report.html')
  assert pathlib.Path(second).read_text() == first


def test_compare_gives_differences_to_the_first(tmp_path):
  workdirs = [
    write_run(tmp_path / 'a', name='first'),
    write_run(
      tmp_path / 'b',
      dense=True,
      name='second',
      **{
        'eval/english/bits_per_byte': 1.56789,
        'eval/bits_per_byte': 1.50004,
        'parameters': 14_000_000,
        'mfu': 0.4,
      },
    ),
  ]
  runs = records.read_all(workdirs)
  rows = {row[0]: row[1:] for row in tables.comparison(runs)[1]}
  assert rows['bits/byte, english'] == ('1.5000', '1.5679 (+0.0679)')
  assert rows['bits/byte, overall'] == ('1.7500', '1.5000 (-0.2500)')
  assert rows['bits/byte, python'] == ('2.0000', '2.0000')
  assert rows['dropped %'] == ('1.25', '-')
  assert rows['parameters'] == ('28.4M', '14M (-14.4M)')
  assert rows['MFU %'] == ('31.2', '40.0 (+8.8)')
  found = check_page(report.compare(workdirs, str(tmp_path / 'out')))
  assert 'bits/byte, english 1.5000 1.5679 (+0.0679)' in found.text
  assert 'the difference to first' in found.text
  assert found.tags.count('svg') == 5
  assert 'different bytes' not in found.text
  assert 'All runs have the same config' in found.text


def test_compare_says_what_is_not_alike(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)  # names of a length that is known
  runs = [write_run(pathlib.Path('a_long_name_of_runs') / n) for n in 'abcdef']
  config = pathlib.Path(runs[1]) / 'config.json'
  config.write_text('{"seed": 1, "train": {"steps": 400}}')
  summary = pathlib.Path(runs[2]) / 'summary.json'
  summary.write_text(json.dumps({**SUMMARY, 'eval/english/bytes': 5}))
  read = records.read_all(runs)
  assert [r.name for r in read] == runs  # one name for all: workdirs instead
  assert tables.config_differences(read)[1] == [
    ('seed', '0', '1', '0', '0', '0', '0'),
    ('moe.layers', '[1, 3]', '-', '[1, 3]', '[1, 3]', '[1, 3]', '[1, 3]'),
  ]
  text = tables.side_by_side(read)
  assert max(map(len, text.splitlines())) <= 100
  assert text.count('bits/byte, english') > 1  # six runs do not fit in one
  assert 'different bytes' in text
  assert 'different bytes' not in tables.side_by_side(read[:2])
  found = check_page(report.compare(runs, str(tmp_path)))
  assert 'different bytes' in found.text and 'moe.layers' in found.text


def run_report(*flags):
  return subprocess.run(
    [sys.executable, '-m', 'experiments.report', *flags],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=60,
  )


def test_program_writes_pages(tmp_path):
  one, two = write_run(tmp_path / 'one', name='x'), write_run(tmp_path / 'two')
  done = run_report(f'--workdirs={one}')
  assert done.returncode == 0 and not done.stderr, done.stderr
  assert f'report  {one}/report.html' in done.stdout
  check_page(tmp_path / 'one' / 'report.html')
  done = run_report(f'--workdirs={one},{two}', f'--workdir={tmp_path}/out')
  assert done.returncode == 0 and not done.stderr, done.stderr
  assert 'bits/byte, english  1.5000  1.5000' in done.stdout
  check_page(tmp_path / 'out' / 'compare.html')


def test_program_ends_with_one_line(tmp_path):
  run = tmp_path / 'run'
  write_run(run)
  (run / 'metrics.jsonl').write_text('{"step": 1}\n{"step"')
  for workdir, line in (
    (tmp_path / 'none', f'error: {tmp_path}/none: no such directory\n'),
    (run, f"error: {run}/metrics.jsonl, line 2: broken JSON: Expecting ':' "),
  ):
    done = run_report(f'--workdirs={workdir}')
    assert done.returncode == 1 and done.stderr.startswith(line), done.stderr
    assert done.stderr.count('\n') == 1
