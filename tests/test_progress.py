"""The progress bar on a terminal, and the lines in a log."""

import io

import pytest

from moe_jax.runs import progress


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture
def clock(monkeypatch):
  """A clock that stands still until it is told."""
  now = [100.0]
  monkeypatch.setattr(progress.time, 'monotonic', lambda: now[0])
  return now


def test_log_lines_come_at_most_every_ten_seconds(clock):
  stream = io.StringIO()
  shown = progress.Progress(100, stream=stream)
  clock[0] += 60.0  # compiling: no part of the time left
  for step in range(1, 101):
    clock[0] += 1.0
    metrics = {'loss': 4.0, 'tokens_per_second': 1e4, 'moe/dropped': 0.0125}
    shown.update(step, metrics if step % 5 == 0 else None)
  shown.close()
  lines = stream.getvalue().splitlines()
  wanted = (5, 15, 25, 35, 45, 55, 65, 75, 85, 95, 100)
  assert [line.split('/')[0] for line in lines] == [f'step {s}' for s in wanted]
  assert lines[1] == (
    'step 15/100 (15 %)  loss 4.0000  10,000 tokens/s  dropped 1.25 %  '
    '01:25 left'
  )
  assert lines[-1] == (
    'step 100/100 (100 %)  loss 4.0000  10,000 tokens/s  dropped 1.25 %'
  )


def test_the_first_and_the_last_line_are_always_printed(clock):
  stream = io.StringIO()
  shown = progress.Progress(30, 10, stream=stream)
  for step in (20, 25, 30):
    shown.update(step, {'loss': 2.0})
  lines = stream.getvalue().splitlines()
  assert lines[0] == 'step 20/30 (66 %)  loss 2.0000'
  assert lines[1:] == ['step 30/30 (100 %)  loss 2.0000']


def test_bar_on_a_terminal(clock, monkeypatch):
  monkeypatch.setenv('COLUMNS', '120')
  stream = Terminal()
  shown = progress.Progress(40, 10, stream=stream)
  shown.update(11, {'loss': 3.0, 'tokens_per_second': 41234.0})
  clock[0] += 60.0
  shown.update(21)
  shown.close()
  last = stream.getvalue().rstrip('\n').split('\r')[-1]
  assert last.endswith('| 21/40, loss 3.0000, 41,234 tokens/s, 01:54 left')
  assert ' 52 %|' in last or ' 53 %|' in last
  assert stream.getvalue().endswith('\n') and len(last) <= 120
  assert 'step' not in stream.getvalue()


def test_inactive_shows_nothing(clock):
  for stream in (io.StringIO(), Terminal()):
    shown = progress.Progress(2, stream=stream, active=False)
    shown.update(1, {'loss': 1.0})
    shown.update(2, {'loss': 1.0})
    shown.close()
    assert stream.getvalue() == ''


def test_dense_runs_and_zero_steps(clock):
  stream = io.StringIO()
  shown = progress.Progress(0, stream=stream)
  shown.update(0, {'eval/bits_per_byte': 2.0})
  shown.close()
  assert stream.getvalue() == 'step 0/0 (0 %)\n'
