"""Sweeps by several processes: turns, ends, and the time that is left."""

import fcntl
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from moe_jax.studies import (
  estimates,
  queue,
  results,
  runner,
  study as study_lib,
)
from tests import fake_study

fake = fake_study.fake  # the fixture
path = fake_study.path  # the fixture


def test_processes_take_turns(path, tmp_path, fake):
  """What another holds is left to it; what it leaves behind is taken."""
  study, work = study_lib.load(path), tmp_path / 'w'
  (work / 'locks').mkdir(parents=True)
  held = open(work / 'locks' / 'a.0', 'w')
  fcntl.flock(held, fcntl.LOCK_EX)
  said = []

  def say(line):
    said.append(line)
    if len(said) == 3:  # another process has done one, while these went on
      row = results.read(work / results.FILE)[0] | {'arm': 'b', 'seed': 2}
      row['config_digest'] = results.arm_digest(study, study.arm('b'))
      results.append(work / results.FILE, row)
    if len(said) == 4:
      held.close()  # and is killed

  runner.sweep(study, str(work), runner.runs(study), processes=2, say=say)
  assert fake.ran == [('b', 0), ('a', 1), ('b', 1), ('a', 2), ('a', 0)]
  assert '[1/6] b seed 0' in said[0] and said[0].endswith('left')
  assert '[5/6] a seed 2' in said[3] and '[6/6] a seed 0' in said[4]
  assert len(results.read(work / results.FILE)) == 6


def test_an_arm_waits_for_what_it_begins_with(tmp_path, monkeypatch, fake):
  monkeypatch.chdir(tmp_path)
  first = ", init_from='p'"
  more = "  add('p', {}, stage='pretrain')"
  fake_study.study_file(tmp_path, first, more)
  study, work = study_lib.load('toy.py'), tmp_path / 'w'
  (work / 'locks').mkdir(parents=True)
  held = open(work / 'locks' / 'p.0', 'w')
  fcntl.flock(held, fcntl.LOCK_EX)
  monkeypatch.setattr(queue.time, 'sleep', lambda _: held.close())
  assert not fake_study.sweep(study, work)
  # Those of b need nothing; a's wait until the holder has gone.
  assert fake.ran[:4] == [('b', 0), ('b', 1), ('b', 2), ('p', 0)]
  assert fake.ran[4:] == [('a', s) for s in range(3)]


def test_processes_begin_one_after_the_other(path, tmp_path, monkeypatch, fake):
  """Else both would copy the rows of `done`, or take a pretrained one."""
  check, held = results.check, []

  def looked(file, study):
    with open(tmp_path / 'w/locks/.begin') as f:
      with pytest.raises(BlockingIOError):
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    held.append(file)
    return check(file, study)

  monkeypatch.setattr(results, 'check', looked)
  fake_study.sweep(study_lib.load(path), tmp_path / 'w')
  assert held and len(fake.ran) == 6


def test_time_left_is_by_arm_and_steps(path):
  study = study_lib.load(path)  # a has 7 steps, b has 8
  row = lambda arm, s: {'arm': arm, 'status': 'done', 'seconds': s}
  names = [r.arm.name for r in runner.runs(study)]
  left = lambda *rows: estimates.ahead(study, names, rows)
  assert left() == 6 * 90
  assert left(row('a', 14.0)) == pytest.approx(3 * 14 + 3 * 16)
  both = row('a', 10.0), row('a', 20.0), row('b', 40.0)
  assert left(*both) == pytest.approx(3 * 15 + 3 * 40)


@pytest.mark.parametrize('sent', ['SIGTERM', 'SIGINT'])
def test_jobs_end_with_the_one_that_began_them(tmp_path, sent):
  """A process a job, each told its part; one line of one process at the end.

  As a terminal does, the signal goes to all of them.
  """
  child = (
    'import os, signal, sys, time\n'
    f'open(os.path.join({str(tmp_path)!r}, sys.argv[-1][-3]), "w").close()\n'
    'time.sleep(60)'
  )
  code = (
    'import sys; from moe_jax.studies import workers\n'
    f'sys.exit(workers.run([sys.executable, "-c", {child!r}], 2))'
  )
  root = pathlib.Path(__file__).parent.parent
  call = [sys.executable, '-c', code]
  how = dict(stderr=subprocess.PIPE, text=True, start_new_session=True)
  p = subprocess.Popen(call, cwd=root, **how)
  for _ in range(200):
    if len(list(tmp_path.iterdir())) == 2:
      break
    time.sleep(0.1)
  assert {f.name for f in tmp_path.iterdir()} == {'0', '1'}
  os.killpg(p.pid, getattr(signal, sent))
  assert p.communicate(timeout=20)[1] == 'stopped; the same command goes on\n'
  assert p.returncode == 130


def test_arms_take_turns_with_the_seeds_of_what_they_begin_with(
  tmp_path, monkeypatch, fake
):
  monkeypatch.chdir(tmp_path)
  more = "  add('p', {}, stage='pretrain', seeds=2)"
  fake_study.study_file(tmp_path, ", init_from='p'", more)
  fake_study.sweep(study_lib.load('toy.py'), tmp_path / 'w')
  assert fake.ran[:2] == [('p', 0), ('p', 1)]
  began = {s: fake.fields['a', s]['init_from'][-3:] for s in range(3)}
  assert began == {0: 'p/0', 1: 'p/1', 2: 'p/0'}
