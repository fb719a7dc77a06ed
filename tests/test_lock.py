"""One writer to a run's directory, while it lives."""

import errno
import json
import os
import socket
import subprocess
import sys

import pytest

from moe_jax.runs import checkpoint, config_history, lock, workdir, writers
from tests.test_checkpoint import fill, small


@pytest.fixture(autouse=True)
def no_history(monkeypatch):
  """These configs are whole as they are, without the fields of real ones."""
  monkeypatch.setattr(config_history, 'CHANGES', ())


def prepare(path, seed=0, **rest):
  given = {'restart': False, 'allow': ()} | rest
  return workdir.prepare(path, {'seed': seed}, **given)


def owner(path):
  file = path / 'lock'
  return json.loads(file.read_text()) if file.exists() else None


def test_lock_names_its_owner_and_is_released(tmp_path):
  prepare(tmp_path)
  me = {'host': socket.gethostname(), 'pid': os.getpid()}
  assert owner(tmp_path) == me
  workdir.release(tmp_path)
  assert owner(tmp_path) is None
  with pytest.raises(ValueError):
    prepare(tmp_path, seed=1)
  assert not (tmp_path / 'lock').exists()  # A refusal leaves no lock.
  prepare(tmp_path)
  prepare(tmp_path)  # One process may run again in its own directory.
  workdir.release(tmp_path / 'nowhere')
  workdir.release(tmp_path)


CHILD = """
import os, sys
from moe_jax.runs import workdir
workdir.prepare(sys.argv[1], {'seed': 0}, restart=False, allow=())
print('ready', flush=True)
how = sys.stdin.readline().strip()
if how == 'crash':
  os._exit(1)
"""


def child(path):
  process = subprocess.Popen(
    [sys.executable, '-c', CHILD, str(path)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == 'ready\n'
  return process


@pytest.mark.parametrize('end', ['exit', 'crash'])
def test_two_runs_cannot_share_a_directory(tmp_path, end):
  """Not while one lives, even where it is said to be dead, or stopped."""
  process = child(tmp_path)
  try:
    for take_over in (False, True):
      with pytest.raises(ValueError, match=f'use by process {process.pid} on'):
        prepare(tmp_path, take_over=take_over)
    assert owner(tmp_path)['pid'] == process.pid
  finally:
    process.communicate(f'{end}\n')
  assert (owner(tmp_path) is None) == (end == 'exit')
  assert prepare(tmp_path) is True  # The dead do not hold it.
  assert owner(tmp_path)['pid'] == os.getpid()
  workdir.release(tmp_path)


def left(path, host, pid):
  (path / 'lock').write_text(json.dumps({'host': host, 'pid': pid}))


def test_a_dead_owners_number_may_be_anothers(tmp_path):
  """A lock is held by its file, not by whoever has the number now."""
  left(tmp_path, socket.gethostname(), os.getppid())
  prepare(tmp_path)
  assert owner(tmp_path)['pid'] == os.getpid()
  workdir.release(tmp_path)


def test_another_hosts_lock_is_taken_where_it_is_said_to_be_dead(tmp_path):
  other = {'host': 'elsewhere', 'pid': os.getpid()}
  left(tmp_path, **other)
  with pytest.raises(ValueError, match=r'on elsewhere; if .* dead, --take_ov'):
    prepare(tmp_path)
  workdir.release(tmp_path)
  assert owner(tmp_path) == other
  prepare(tmp_path, take_over=True)
  assert owner(tmp_path)['host'] == socket.gethostname()
  workdir.release(tmp_path)
  (tmp_path / 'lock').write_text('{')
  with pytest.raises(ValueError, match='lock cannot be read; --take_over'):
    prepare(tmp_path)
  prepare(tmp_path, take_over=True)
  workdir.release(tmp_path)


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
  def flock(f, how):
    raise OSError(errno.ENOLCK, 'No locks available')

  monkeypatch.setattr(lock.fcntl, 'flock', flock)
  with pytest.raises(ValueError, match=r'be written: .*No locks avail'):
    prepare(tmp_path)


@pytest.mark.parametrize(
  'act',
  [
    lambda w: line(w, 2),
    lambda w: workdir.adopt(w, {'seed': 1}),
    lambda w: save(w, 2),
    lambda w: restored(w),
  ],
  ids=['line', 'config', 'checkpoint', 'quarantine'],
)
def test_who_was_taken_over_leaves_all_as_it_is(tmp_path, act):
  prepare(tmp_path)
  fill(tmp_path / 'checkpoints', [1], keep=1)
  (tmp_path / 'checkpoints/1/MANIFEST.json').unlink()
  left(tmp_path, 'elsewhere', 7)
  before = names(tmp_path)
  with pytest.raises(ValueError, match='taken over by process 7 on elsewhere'):
    act(tmp_path)
  assert names(tmp_path) == before
  workdir.release(tmp_path)
  assert owner(tmp_path) == {'host': 'elsewhere', 'pid': 7}


def names(path):
  out = {str(p) for p in path.rglob('*') if '_tmp' not in str(p)}
  return {p for p in out if 'tensorboard' not in p and 'metrics' not in p}


def line(path, step):
  owned = lambda: workdir.check(path)
  with writers.Writer(path, start_step=1, owned=owned) as w:
    w.write(step, {'loss': 1.0})


def guarded(path):
  owned = lambda: workdir.check(path)
  return checkpoint.Checkpointer(path / 'checkpoints', 1, owned)


def save(path, step):
  with guarded(path) as c:
    c.save(step, small(), {})
    c.wait()


def restored(path):
  with guarded(path) as c:
    c.restore(small())


def test_of_runs_that_start_at_once_one_wins(tmp_path):
  """They all find the lock of a dead run; all try before the first one ends."""
  left(tmp_path, socket.gethostname(), 1)
  pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE}
  call = [sys.executable, '-c', CHILD, str(tmp_path)]
  runs = [
    subprocess.Popen(call, stderr=subprocess.PIPE, text=True, **pipes)
    for _ in range(3)
  ]
  won = [r.stdout.readline() for r in runs]
  errors = [r.communicate('exit\n')[1] for r in runs]
  assert sorted(won) == ['', '', 'ready\n']
  assert sum('in use by process' in e for e in errors) == 2
