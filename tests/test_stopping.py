"""Signals end a run between two steps: saved, and gone on with."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from moe_jax.errors import StoppedError
from moe_jax.runs import checkpoint
from moe_jax.training import stopping
from tests import test_resume

made, runs = test_resume.made, test_resume.runs  # the fixtures


def told(runs, how, at=2):
  """The run is told at a step; (the error, the steps that it had saved)."""

  def hurt(state, step):
    if step == at:
      how()
    return state

  runs.hurt = hurt
  with pytest.raises(StoppedError) as e:
    runs(train__steps=6, train__checkpoint_every=4)
  runs.hurt = lambda state, step: state
  return e.value, checkpoint.steps(runs.workdir / 'checkpoints')


@pytest.mark.parametrize(
  ('name', 'code'), [('SIGTERM', 143), ('SIGUSR1', 143), ('SIGINT', 130)]
)
def test_the_step_finishes_and_is_saved(runs, name, code, capfd):
  number = getattr(signal, name)
  before = signal.getsignal(number)
  error, saved = told(runs, lambda: signal.raise_signal(number))
  assert (str(error), error.code) == (
    f'{name}: stopped after step 2, which is saved; the same command goes on',
    code,
  )
  assert saved == [2] and not (runs.workdir / 'lock').exists()
  assert f'{name}: the run ends after this step' in capfd.readouterr().err
  assert signal.getsignal(number) is before
  assert signal.set_wakeup_fd(-1) == -1
  assert runs(train__steps=6, train__checkpoint_every=4)['steps'] == 6
  assert len(runs.rows) == 6 * 8  # each step once


def test_what_was_told_to_be_ignored_is(runs):
  """A sweep's processes do not hear a terminal's Ctrl-C."""
  before = signal.signal(signal.SIGINT, signal.SIG_IGN)
  try:
    runs.hurt = lambda state, step: os.kill(os.getpid(), 2) or state
    assert runs(train__steps=2)['steps'] == 2
  except StoppedError:
    pytest.fail('it was heard')
  finally:
    signal.signal(signal.SIGINT, before)


def test_a_run_that_is_at_its_end_ends(runs):
  def hurt(state, step):
    if step == 2:
      signal.raise_signal(signal.SIGTERM)
    return state

  runs.hurt = hurt
  assert runs(train__steps=2)['steps'] == 2


def test_minutes_are_over(runs, monkeypatch):
  now = [0.0]
  monkeypatch.setattr(stopping.time, 'monotonic', lambda: now[0])

  def later():
    now[0] = 61.0

  runs.hurt = lambda state, step: (later() if step == 3 else None) or state
  minutes = {'train__steps': 6, 'train__max_minutes': 1.0}
  with pytest.raises(StoppedError, match=r'max_minutes are over: .* step 3,'):
    runs(**minutes)
  assert checkpoint.steps(runs.workdir / 'checkpoints') == [2, 3]
  assert runs(**minutes)['steps'] == 6


def test_outside_of_the_main_thread_signals_are_anothers():
  found = []

  def run():
    with stopping.Stop() as stop:
      found.append(stop.after(1))

  before = signal.getsignal(signal.SIGTERM)
  thread = threading.Thread(target=run)
  thread.start()
  thread.join()
  assert found == [False] and signal.getsignal(signal.SIGTERM) is before


# Deaf, as in a compilation: Python's own handlers do not run in one call of C.
DEAF = """
import ctypes, sys
from moe_jax.training import stopping
with stopping.Stop() as stop:
  print('ready', flush=True)
  ctypes.CDLL(None).sleep(60) if sys.argv[1] == 'c' else input()
  for _ in range(3):
    ctypes.CDLL(None).sleep(20)
"""


def test_a_second_signal_ends_it_at_once():
  call = [sys.executable, '-c', DEAF, 'c']
  p = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  try:
    assert p.stdout.readline() == b'ready\n'
    began = time.monotonic()
    for _ in range(3):  # the first two count as one
      p.send_signal(signal.SIGTERM)
      time.sleep(0.7)
    assert p.wait(10) == 143 and time.monotonic() - began < 10
    assert b'a second signal: ended at once' in p.stderr.read()
  finally:
    p.kill()
    p.communicate()
