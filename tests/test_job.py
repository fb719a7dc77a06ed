"""Several processes of a run: told, killed, hanging; ended in one line."""

import io
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from moe_jax.parallel import job as job_lib
from tests import mains, saved

PAGE = """\
E1129 02:11:06.475845   17390 coordination_service.cc:1549] [65] The following \
tasks are unhealthy (stopped sending heartbeats):
1
The tasks have crashed.
F1129 02:11:06.476519   17401 client.h:80] Terminating process because
    @     0x7fdf0fe40634  absl::lts_20260107::log_internal::SendToLog()
Fatal Python error: Aborted
"""
LATE = PAGE.partition('F1129')[2].replace('because', 'RegisterTask')
WAIT = 'import time; time.sleep(60)'
DIE = 'import os; os.kill(os.getpid(), 9)'
ABORT = f'import os, sys; sys.stderr.write({PAGE!r}); sys.stderr.flush(); '
ABORT += 'os.abort()'
LEFT = ABORT.replace(repr(PAGE), repr(f'F1129{LATE}'))


def ended(monkeypatch, *codes, act=lambda job: None):
  """(exit code, what is said) of a job of these programs."""
  monkeypatch.setattr(job_lib, '_GRACE', 0.5)
  said = io.StringIO()
  job = job_lib.Job([[sys.executable, '-c', c] for c in codes], said)
  try:
    act(job)
    code = job.wait(lambda: 'last checkpoint: step 7')
  finally:
    job.kill()
  return code, said.getvalue()


@pytest.mark.parametrize(
  ('codes', 'line'),
  [
    ((WAIT, DIE), 'process 1 of 2 was killed by SIGKILL'),
    ((ABORT, WAIT), 'process 1 gives no sign of life'),
    ((ABORT.replace('\\n1\\n', '\\nx\\n'), WAIT), 'process 1 of 2 hangs'),
    ((LEFT,), 'not all processes of the job have come'),
    ((WAIT, 'print(1); 1 / 0'), 'process 1 of 2 ended with exit code 1'),
    (('exit(3)', 'exit(1)'), 'exit codes of 2: 0 with 3, 1 with 1'),
  ],
  ids=['killed', 'silent', 'hangs', 'late', 'fails', 'both'],
)
def test_who_died_is_named(monkeypatch, codes, line):
  began = time.monotonic()
  code, said = ended(monkeypatch, *codes)
  assert code == 1 and time.monotonic() - began < 20
  told = f'error: {line}; last checkpoint: step 7\n'
  assert said.endswith(told)
  # The traceback is a process's own; the page is of no use.
  assert ('Traceback' in said) == ('1 / 0' in codes[-1])
  assert 'unhealthy' not in said and 'Aborted' not in said


@pytest.mark.parametrize('code', [0, 1, 143])
def test_what_all_say_is_the_jobs(monkeypatch, code):
  """They have said why."""
  assert ended(monkeypatch, *[f'exit({code})'] * 2) == (code, '')


def test_signals_are_passed_on(monkeypatch):
  code = (
    'import signal, sys, time\n'
    'signal.signal(signal.SIGUSR1, lambda *_: sys.exit(143))\n'
    "print('ready', file=sys.stderr, flush=True)\n"
    'time.sleep(60)'
  )

  def act(job):
    while job._stderr.getvalue().count('ready') < 2:
      time.sleep(0.05)
    job.tell(signal.SIGUSR1)

  assert ended(monkeypatch, code, code, act=act)[0] == 143


@pytest.mark.parametrize('other', ['exit(0)', WAIT, 'exit(143)'])
def test_who_has_no_ear_for_a_signal_ends_as_told(monkeypatch, other):
  """One whose handlers are not yet there, or no longer; nobody is to blame."""

  def act(job):
    time.sleep(0.3)
    job.tell(signal.SIGTERM)

  assert ended(monkeypatch, WAIT, other, act=act) == (143, '')


def test_command_lines_and_the_last_checkpoint(tmp_path):
  call = ['experiments.train', f'--workdir={tmp_path}']
  two = job_lib.calls(call, 2, port=5)
  assert [c[1:4] for c in two] == [['-m', *call]] * 2
  assert two[1][4:] == [
    '--coordinator_address=localhost:5',
    '--num_processes=2',
    '--process_id=1',
  ]
  assert job_lib.calls(call, 0) == [[sys.executable, '-m', *call]]
  where = f'{tmp_path}/checkpoints; the same command goes on'
  assert job_lib.last_checkpoint(call) == f'last checkpoint: none in {where}'
  for name in ('9', '10', '_tmp'):
    (tmp_path / 'checkpoints' / name).mkdir(parents=True)
  assert job_lib.last_checkpoint(call) == f'last checkpoint: step 10 in {where}'


def test_no_process_outlives_whoever_started_it():
  """Be it killed before the process has come to listen, or after."""
  listen = (
    'from moe_jax.parallel import job; import time; job.end_with_parent();'
    "print('on', flush=True); time.sleep(60)"
  )
  start = (
    'import sys; from moe_jax.parallel import job\n'
    f'job.Job([[sys.executable, "-c", {listen!r}]]).wait(str)'
  )
  with subprocess.Popen(
    [sys.executable, '-c', start], stdout=subprocess.PIPE, text=True
  ) as p:
    assert p.stdout.readline() == 'on\n'
    began = time.monotonic()
    p.kill()
    assert p.stdout.read() == ''  # when the child has closed it, too
    assert time.monotonic() - began < 20
  late = os.environ | {job_lib._PARENT: '1'}
  assert subprocess.run([sys.executable, '-c', listen], env=late).returncode


def test_a_job_of_nothing_is_refused():
  with mains.loaded('job') as main:
    with pytest.raises(ValueError, match='no main is given'):
      main.main(['job'])


class Training:
  """Two processes that train, until they are told not to."""

  def __init__(self, root, config):
    self.workdir = root / 'run'
    call = [sys.executable, '-m', 'experiments.job', '--processes=2', '--']
    call += ['experiments.train', f'--config={config}']
    self.call = [*call, f'--workdir={self.workdir}']

  def start(self):
    self.p = subprocess.Popen(
      self.call,
      stderr=subprocess.PIPE,
      stdout=subprocess.DEVNULL,
      text=True,
    )
    self.lines, self.at = [], threading.Event()
    threading.Thread(target=self._read, daemon=True).start()
    assert self.at.wait(120), ''.join(self.lines)
    return self

  def _read(self):
    with self.p.stderr as lines:
      for line in lines:
        self.lines.append(line)
        if line.startswith('step '):
          self.at.set()

  def children(self):
    found = subprocess.check_output(['pgrep', '-P', str(self.p.pid)])
    return sorted(map(int, found.split()))

  def end(self, seconds):
    """(exit code, last line)."""
    try:
      code = self.p.wait(seconds)
    finally:
      self.p.kill()
    time.sleep(0.2)
    return code, self.lines[-1]

  def steps(self):
    names = os.listdir(self.workdir / 'checkpoints')
    return sorted(int(n) for n in names if n.isdecimal())


@pytest.fixture
def training(tmp_path):
  fields = saved.corpus(tmp_path) | {
    'cpu_devices': 2,
    'mesh': 'auto(expert=2)',
    'model.num_layers': 1,
    'moe.layers': 'all',
    'moe.num_experts': 2,
    'train.steps': 100_000,
    'train.checkpoint_every': 5,
    'train.log_every': 5,
  }
  file = tmp_path / 'config.py'
  file.write_text(
    'from tests import tiny\n\n'
    f'def get_config(arg=None):\n  return tiny.config(**{fields!r})\n'
  )
  return Training(tmp_path, file)


@pytest.mark.slow
def test_two_processes_are_told_and_killed_and_go_on(training):
  """They save the same step; where one dies or hangs, the job ends."""
  run = training.start()
  run.p.send_signal(signal.SIGUSR1)
  code, _ = run.end(60)
  (told,) = {line for line in run.lines if 'stopped after step' in line}
  assert code == 143 and f'step {run.steps()[-1]}, which is' in told
  for victim, number in ((1, 'KILL'), (0, 'KILL'), (1, 'STOP')):
    before = run.steps()[-1]
    run = training.start()
    while run.steps()[-1] <= before + 5:
      time.sleep(0.2)
    os.kill(run.children()[victim], getattr(signal, f'SIG{number}'))
    code, line = run.end(60)
    why = 'was killed by SIGKILL' if number == 'KILL' else 'gives no sign'
    assert code == 1 and f'process {victim} ' in line and why in line
    assert f'last checkpoint: step {run.steps()[-1]} in' in line
    assert run.steps()[-1] > before
    assert sum('Fatal Python' in x for x in run.lines) == 0
