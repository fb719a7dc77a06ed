"""Metrics on disk: valid JSON, nothing lost or doubled, events read back."""

import csv
import json
import logging
import os
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from moe_jax.runs import writers


def lines(workdir):
  def refuse(name):
    raise AssertionError(f'{name} is no JSON')

  text = (workdir / 'metrics.jsonl').read_text()
  assert not text or text.endswith('\n')
  return [json.loads(x, parse_constant=refuse) for x in text.splitlines()]


def steps(workdir):
  return [line['step'] for line in lines(workdir)]


def board(workdir):
  """[(step, tag, value)], as TensorBoard shows them: after its purges.

  The files are records of: length (uint64), its checksum (uint32), an event,
  its checksum (uint32).
  """
  shown = []
  for path in sorted((workdir / 'tensorboard').iterdir()):
    content, at = path.read_bytes(), 0
    while at < len(content):
      (length,) = struct.unpack_from('<Q', content, at)
      event = event_pb2.Event.FromString(content[at + 12 : at + 12 + length])
      at += 12 + length + 4
      if event.HasField('session_log'):
        shown = [x for x in shown if x[0] < event.step]
      for v in event.summary.value:
        shown.append((event.step, v.tag, v.simple_value))
  return shown


def test_writes_every_kind_of_number(tmp_path):
  with writers.Writer(tmp_path) as w:
    w.write(
      np.int64(3),
      {
        'loss': jnp.float32(1.5),
        'half': jnp.bfloat16(0.25),
        'count': np.int32(7),
        'on': np.bool_(True),
        'load': jnp.arange(6, dtype=jnp.int32).reshape(2, 3),
        'halves': jnp.ones(2, jnp.bfloat16),
        'nested': [[1, 2.5], (np.float32(3), jnp.float32(4))],
        'by_name': {'a': np.array([1.0, np.nan])},
        'bad': float('nan'),
        'worse': jnp.array([jnp.inf, -jnp.inf, 1.0]),
        'note': 'text',
        'none': None,
      },
    )
    # Flushed: what is written survives a kill.
    assert lines(tmp_path) == [
      {
        'step': 3,
        'loss': 1.5,
        'half': 0.25,
        'count': 7,
        'on': True,
        'load': [[0, 1, 2], [3, 4, 5]],
        'halves': [1.0, 1.0],
        'nested': [[1, 2.5], [3.0, 4.0]],
        'by_name': {'a': [1.0, None]},
        'bad': None,
        'worse': [None, None, 1.0],
        'note': 'text',
        'none': None,
      }
    ]
  assert board(tmp_path) == [
    (3, 'loss', 1.5),
    (3, 'half', 0.25),
    (3, 'count', 7.0),
    (3, 'on', 1.0),
  ]


def test_resume_drops_what_runs_again(tmp_path):
  with writers.Writer(tmp_path) as w:
    for s in (0, 10, 20, 30):
      w.write(s, {'loss': s / 2})
  for first in (True, False):  # Killed twice between steps 20 and 40.
    with writers.Writer(tmp_path, start_step=20) as w:
      assert steps(tmp_path) == [0, 10, 20]
      w.write(30, {'loss': -1.0 if first else -2.0})
  assert steps(tmp_path) == [0, 10, 20, 30]
  assert lines(tmp_path)[-1] == {'step': 30, 'loss': -2.0}
  want = [(0, 0.0), (10, 5.0), (20, 10.0), (30, -2.0)]
  assert [(s, v) for s, _, v in board(tmp_path)] == want
  # No checkpoint was saved before the kill: all of it runs again.
  with writers.Writer(tmp_path) as w:
    w.write(0, {'loss': 9.0})
  assert lines(tmp_path) == [{'step': 0, 'loss': 9.0}]
  assert board(tmp_path) == [(0, 'loss', 9.0)]
  files = ['metrics.csv', 'metrics.jsonl', 'tensorboard']
  assert sorted(os.listdir(tmp_path)) == files


def table(workdir):
  """{column: its numbers}, nan where a cell is empty."""
  header, *rows = csv.reader((workdir / 'metrics.csv').read_text().splitlines())
  rows = np.array([[float(v or 'nan') for v in row] for row in rows])
  return dict(zip(header, rows.T.tolist(), strict=True))


def test_columns_are_numbers(tmp_path):
  """Of an expert of a layer each; later columns, text, nulls, a resume."""
  row = {
    'loss': 2.0,
    'moe/layers': [1, 3],
    'moe/load': [[0.25, 0.75], [1.0, 0.0]],
    'health/dead': [0, 1],
    'note': 'text',
    'sizes': [5, 6],
  }
  first = {
    'loss': 2.0,
    'moe/load/layer_1/0': 0.25,
    'moe/load/layer_1/1': 0.75,
    'moe/load/layer_3/0': 1.0,
    'moe/load/layer_3/1': 0.0,
    'health/dead/layer_1': 0.0,
    'health/dead/layer_3': 1.0,
    'sizes/0': 5.0,
    'sizes/1': 6.0,
  }
  with writers.Writer(tmp_path) as w:
    w.write(1, row)
    assert table(tmp_path) == {'step': [1.0]} | {
      k: [v] for k, v in first.items()
    }
    w.write(2, row | {'eval': {'a': 0.5}, 'on': True})  # new columns
    w.write(3, {'loss': float('inf')})
  want = {'step': [1.0, 2.0], 'loss': [2.0, 2.0], 'on': [np.nan, 1.0]}
  os.truncate(tmp_path / 'metrics.csv', 9)  # as a kill may leave it
  with writers.Writer(tmp_path, start_step=2) as w:
    found = table(tmp_path)
    for k, v in (want | {'eval/a': [np.nan, 0.5]}).items():
      np.testing.assert_equal(found[k], v)
    assert found.keys() == {'step', *first, 'eval/a', 'on'}
    w.write(4, {'loss': None})
  np.testing.assert_equal(table(tmp_path)['step'], [1.0, 2.0, 4.0])
  np.testing.assert_equal(table(tmp_path)['loss'], [2.0, 2.0, np.nan])


def test_a_torn_line_is_dropped(tmp_path, caplog):
  with writers.Writer(tmp_path) as w:
    w.write(1, {'loss': 1.0})
    w.write(2, {'loss': 2.0})
  path = tmp_path / 'metrics.jsonl'
  os.truncate(path, path.stat().st_size - 4)
  with caplog.at_level(logging.WARNING, 'absl'):
    with writers.Writer(tmp_path, start_step=5) as w:
      w.write(6, {'loss': 6.0})
  assert steps(tmp_path) == [1, 6]
  assert 'dropped 1 unreadable lines' in caplog.text


def test_inactive_writes_nothing(tmp_path):
  with writers.Writer(tmp_path, active=False) as w:
    w.write(1, {'loss': 1.0})
  assert os.listdir(tmp_path) == []


def test_refuses_what_is_no_number(tmp_path):
  with writers.Writer(tmp_path) as w:
    with pytest.raises(ValueError, match="cannot be named 'step'"):
      w.write(1, {'step': 2})
    with pytest.raises(ValueError, match='loss is a function'):
      w.write(1, {'loss': lines})
    with pytest.raises(ValueError, match='a is a ndarray'):
      w.write(1, {'a': np.array([object()])})
    with pytest.raises(ValueError, match=r'x\.y is a set'):
      w.write(1, {'x': {'y': {1}}})
  assert lines(tmp_path) == []  # Not even half a line.


def test_write_json_is_whole_or_not_at_all(tmp_path):
  path = tmp_path / 'a.json'
  writers.write_json(path, {'b': np.float32(1), 'a': (1, float('inf'))})
  text = '{\n  "a": [\n    1,\n    null\n  ],\n  "b": 1.0\n}\n'
  assert path.read_text() == text
  with pytest.raises(ValueError, match=r'a\.json\.b is a set'):
    writers.write_json(path, {'a': 2, 'b': set()})
  assert path.read_text() == text
  writers.write_json(path, [])
  assert path.read_text() == '[]\n'
  assert os.listdir(tmp_path) == ['a.json']
