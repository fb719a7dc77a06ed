"""Steps that hang end their process; starts that come to nothing end, too."""

import json
import os
import subprocess
import sys
import time
import types

import pytest

from moe_jax.runs import starts
from moe_jax.training import watchdog
from tests import test_resume

made, runs = test_resume.made, test_resume.runs  # the fixtures

# Asleep in C, as a collective is that waits for ever.
HANGS = """
import ctypes
from moe_jax.training import watchdog
def step():
  ctypes.CDLL(None).sleep(60)
with watchdog.Watchdog(0.2 / 60, at=6) as dog:
  dog.alive(7)
  step()
"""


def test_a_hang_ends_the_process_with_its_stack():
  began = time.monotonic()
  done = subprocess.run(
    [sys.executable, '-c', HANGS], capture_output=True, timeout=50, text=True
  )
  assert done.returncode == watchdog.CODE == 75
  assert time.monotonic() - began < 20
  first, *stack = done.stderr.splitlines()
  assert first.startswith(
    'error: nothing has ended for 0.00333333 minutes, after step 7'
  )
  assert 'code 75; the same command goes on from the last' in first
  assert any('in step' in line for line in stack)


@pytest.fixture
def ends(monkeypatch):
  """What the process would have ended with: the line, the code."""
  found = []
  system = types.SimpleNamespace(
    write=lambda fd, text: found.append(text), _exit=found.append
  )
  monkeypatch.setattr(watchdog, 'os', system)
  stacks = types.SimpleNamespace(dump_traceback=lambda *a, **k: None)
  monkeypatch.setattr(watchdog, 'faulthandler', stacks)
  return found


LIMIT = {'train__max_step_minutes': 1.0, 'train__steps': 5}


@pytest.fixture
def clock(monkeypatch):
  """Lets minutes go by, and the thread look at the clock."""
  now = [0.0]
  fake = types.SimpleNamespace(monotonic=lambda: now[0])
  monkeypatch.setattr(watchdog, 'time', fake)
  monkeypatch.setattr(watchdog, '_SHARE', 1e-4)

  def go_by(minutes, until):
    now[0] += 60 * minutes
    for _ in range(1000):
      time.sleep(0.01)
      if until():
        return

  return go_by


def test_a_step_that_sleeps_is_found(runs, ends, clock):
  def hurt(state, step):
    if step == 4:
      clock(1.5, until=lambda: len(ends) == 2)
    return state

  runs.hurt = hurt
  runs(**LIMIT, train__checkpoint_every=0)
  line, code = ends
  assert b'error: nothing has ended for 1 minutes, after step 2' in line
  assert b'(train.max_step_minutes=1)' in line and code == 75


def test_what_is_known_to_be_long_is_no_hang(runs, ends, clock):
  """The first step compiles, an evaluation is of many batches."""
  polls = iter(range(100))
  wait = lambda: next(polls) % 10 == 9  # ten looks of the thread

  def hurt(state, step):
    if step == 1:
      clock(1.5, until=wait)
    return state

  def scores(*state):
    clock(1.5, until=wait)
    return {'eval/loss': 2.0}

  runs.hurt, runs.scores = hurt, scores
  runs(**LIMIT)
  clock(99, until=wait)  # nor what is over
  assert ends == []


def test_starts_without_a_new_step_come_to_an_end(runs):
  def die(at):
    def hurt(state, step):
      if step == at:
        raise ZeroDivisionError
      return state

    runs.hurt = hurt
    with pytest.raises(ZeroDivisionError):
      runs(train__steps=6)

  file = runs.workdir / 'starts.json'
  for _ in range(3):
    die(4)
  assert json.loads(file.read_text()) == {'step': 2, 'starts': 2}
  file.write_text(json.dumps({'step': 2, 'starts': starts.MOST - 1}))
  die(6)  # it came to step 5: that one counts as new
  die(5)
  assert json.loads(file.read_text()) == {'step': 4, 'starts': 1}
  file.write_text(json.dumps({'step': 4, 'starts': starts.MOST}))
  trained = len(runs.rows)
  with pytest.raises(
    ValueError, match=r'10 starts of .* came to no new step, a'
  ):
    runs(train__steps=6)
  assert len(runs.rows) == trained and not (runs.workdir / 'lock').exists()
  os.remove(file)
  runs.hurt = lambda state, step: state
  assert runs(train__steps=6)['steps'] == 6
