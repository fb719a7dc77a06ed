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


LIMIT = {'train__max_step_minutes': 0.5 / 60, 'train__steps': 5}


def test_a_step_that_sleeps_is_found(runs, ends):
  def hurt(state, step):
    time.sleep(1.0 if step == 4 else 0)
    return state

  runs.hurt = hurt
  runs(**LIMIT)
  line, code = ends
  assert b'after step 2' in line or b'after step 3' in line
  assert b'train.max_step_minutes=0.00833333' in line and code == 75


def test_what_is_known_to_be_long_is_no_hang(runs, ends):
  """The first step compiles, an evaluation is of many batches."""

  def hurt(state, step):
    time.sleep(0.7 if step == 1 else 0)
    return state

  def scores(*state):
    time.sleep(0.7)
    return {'eval/loss': 2.0}

  runs.hurt, runs.scores = hurt, scores
  runs(**LIMIT)
  time.sleep(0.7)  # nor what is over
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
