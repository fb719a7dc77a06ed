"""What is read from a run's records, and the tables made of it."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from moe_jax.plots import page, records, style, tables
from tests import test_plots

SUMMARY = {
  k: v
  for k, v in test_plots.SUMMARY.items()
  if k not in ('name', 'moe/load_max')
}


def write(folder, rows, config='{}', summary=None):
  folder.mkdir()
  (folder / 'config.json').write_text(config)
  (folder / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  if summary is not None:
    (folder / 'summary.json').write_text(json.dumps(summary))
  return folder


def test_end_of_run_text():
  files = {'report': 'runs/a/report.html', 'checkpoints': 'runs/a/checkpoints'}
  assert tables.end_of_run(SUMMARY, files) == '\n'.join(
    [
      'domain   documents   bytes  bits/byte   95 % interval  bigram  '
      'difference',
      '-' * 73,
      'english         12  34,567      1.500  1.450 to 1.550   3.250'
      '      -1.750',
      'python           8   1,000      2.000  1.875 to 2.125   1.900'
      '      +0.100',
      'overall         20  35,567      1.750  1.700 to 1.800   3.500'
      '      -1.750',
      '',
      'dropped in training          1.25 %',
      'load max/mean, layer 3       1.30',
      'load max/mean, layer 11      1.20',
      'tokens per second            41,234',
      'MFU, of the measured matmul  31.25 %',
      'parameters                   28.4M',
      'steps                        2,000',
      'mesh                         data=1,fsdp=2,expert=4,model=1',
      '',
      'report       runs/a/report.html',
      'checkpoints  runs/a/checkpoints',
      '',
    ]
  )


def test_end_of_run_text_without_evaluation_or_experts():
  assert tables.end_of_run({'steps': 3}, {}) == 'steps  3\n'
  lone = tables.end_of_run({'eval/a/bits_per_byte': 1.0}, {})
  assert lone.splitlines()[2].split() == ['a', '-', '-', '1.000', '-', '-', '-']


def test_running_mean_and_thinning():
  values = np.array([1.0, np.nan, 3.0, 8.0, 0.0, 2.0])
  wanted = []
  for i, v in enumerate(values):
    near = [w for w in values[max(0, i - 1) : i + 2] if not math.isnan(w)]
    wanted.append(math.nan if math.isnan(v) else sum(near) / len(near))
  np.testing.assert_allclose(style.running_mean(values, 3), wanted)

  steps, values_SE = np.arange(10), np.arange(20.0).reshape(10, 2)
  thin_steps, thin_SE = style.thin(steps, values_SE, 5)
  assert thin_steps.tolist() == [0.5, 2.5, 4.5, 6.5, 8.5]
  np.testing.assert_allclose(thin_SE[:, 0], [1, 5, 9, 13, 17])
  assert style.thin(steps, values_SE, 10)[1] is values_SE
  assert len(style.thin(np.arange(1003), np.zeros(1003), 100)[0]) == 100


def test_loads_are_over_the_mean(tmp_path):
  rows = [
    {'step': 5, 'moe/load': [[0.5, 0.25, 0.25, 0.0], [0.25] * 4]},
    {'step': 6, 'loss': 1.0},
    {'step': 7, 'moe/load': [[0.25] * 4, [0.1, 0.2, 0.3, 0.4]]},
  ]
  steps, found = records.read(str(write(tmp_path / 'run', rows))).loads()
  assert steps.tolist() == [5, 7] and list(found) == [0, 1]
  np.testing.assert_allclose(found[0], [[2, 1, 1, 0], [1, 1, 1, 1]])
  np.testing.assert_allclose(found[1], [[1, 1, 1, 1], [0.4, 0.8, 1.2, 1.6]])


@pytest.mark.parametrize(
  ('value', 'wanted'),
  [
    (0.0, '0'), (12, '12'), (999.4, '999'), (999.9, '1k'), (1234, '1.23k'),
    (-45600, '-45.6k'), (28412928, '28.4M'), (2.3e11, '230G'), (4e12, '4T'),
  ],
)  # fmt: skip
def test_si(value, wanted):
  assert style.si(value) == wanted


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (None, 'error: {run}: no such directory'),
    ('config.json', 'error: {run}/config.json: no such file; is {run} the '),
    ('metrics.jsonl', 'error: {run}/metrics.jsonl: no such file; is {run} th'),
    ({'metrics.jsonl': ''}, 'error: {run}/metrics.jsonl: empty, no step'),
    (
      {'metrics.jsonl': '{"step": 1}\n{"step": 2, "lo'},
      'error: {run}/metrics.jsonl, line 2: broken JSON: Unterminated string',
    ),
    (
      {'metrics.jsonl': '{"step": 1}\n\n{"step": 2}'},
      'error: {run}/metrics.jsonl, line 2: broken JSON: Expecting value',
    ),
    (
      {'metrics.jsonl': '{"step": 1}\n[2]'},
      "error: {run}/metrics.jsonl, line 2: expected a JSON object, found '[2]'",
    ),
    (
      {'metrics.jsonl': '{"loss": 1}'},
      "error: {run}/metrics.jsonl, line 1: 'step' is no integer",
    ),
    (
      {'config.json': '{\n"a": 1,\n"b" 2}'},
      'error: {run}/config.json, line 3: broken JSON: ',
    ),
    ({'summary.json': '[]'}, 'error: {run}/summary.json: expected a JSON obj'),
  ],
)
def test_broken_records_are_one_clear_line(tmp_path, damage, message):
  run = tmp_path / 'run'
  if damage is not None:
    write(run, [{'step': 1}], summary={})
  if isinstance(damage, str):
    (run / damage).unlink()
  for name, text in (damage if isinstance(damage, dict) else {}).items():
    (run / name).write_text(text)
  with pytest.raises((ValueError, FileNotFoundError)) as caught:
    records.read(str(run))
  line = f'error: {caught.value}'
  assert line.startswith(message.format(run=run)) and '\n' not in line


def test_page_escapes_text():
  made = page.page('<a>', [page.table(['<b>'], [['<c>']]), page.heading('<d>')])
  made += page.folded('<e>', '<f>') + page.facts([('<g>', '<h>')])
  made += page.figure('<svg></svg>', '"><i>') + page.paragraph('<j>')
  for letter in 'abcdefghij':
    assert f'&lt;{letter}&gt;' in made


def test_plots_need_no_jax_and_no_pyplot():
  code = (
    'import sys; from moe_jax.plots import report; '
    "bad = {'jax', 'flax', 'matplotlib.pyplot', 'ml_collections'}; "
    'sys.exit(str(bad & set(sys.modules)) if bad & set(sys.modules) else 0)'
  )
  subprocess.run([sys.executable, '-c', code], check=True)
