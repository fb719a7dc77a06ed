"""The launch scripts: checked, and what they call, with stand-ins for it."""

import os
import pathlib
import re
import subprocess
import sys
import sysconfig
import time
import warnings

import pytest
from absl import flags

from moe_jax.parallel import job as job_lib
from tests import mains, saved

ROOT = pathlib.Path(__file__).resolve().parents[1]
LAUNCH = ROOT / 'experiments/launch'
SLURM, TPU = LAUNCH / 'slurm.sh', LAUNCH / 'tpu_pod.sh'
# What a shell must hand on as it is.
GIVEN = [
  '--config=configs/quickstart.py',
  '--config.moe.router=top_k(k=2, renormalize=False)',
  "--config.data.domains=('a b', '$HOME', '*')",
  '--workdir=/tmp/it\'s "here"',
]
# Writes a line of its arguments, between unit separators; its exit code is the
# next of CODES.
STAND_IN = r"""#!/usr/bin/env bash
{ printf '%s' "${0##*/}"; printf '\x1f%s' "$@"; echo; } >> "$CALLS"
codes=($CODES)
exit "${codes[$(wc -l < "$CALLS") - 1]:-0}"
"""


def stand_in(folder, name, text=STAND_IN):
  (folder / name).write_text(text)
  (folder / name).chmod(0o755)


@pytest.fixture
def launch(tmp_path):
  """Runs a script; (exit code, the calls that it made)."""
  for name in ('srun', 'scontrol', 'gcloud'):
    stand_in(tmp_path, name)

  def run(script, codes='', given=GIVEN, **env):
    calls = tmp_path / 'calls'
    calls.unlink(missing_ok=True)
    env = {
      'PATH': f'{tmp_path}:{os.environ["PATH"]}',
      'HOME': str(tmp_path),
      'CALLS': str(calls),
      'CODES': codes,
      'SLURM_SUBMIT_DIR': str(ROOT),
      'SLURM_JOB_ID': '7',
      'PYTHON': 'py',
      **env,
    }
    done = subprocess.run(['bash', str(script), *given], env=env, cwd=tmp_path)
    lines = calls.read_text().splitlines() if calls.exists() else []
    return done.returncode, [line.split('\x1f') for line in lines]

  return run


def flags_of(call):
  """What absl makes of a call of the launcher, and of train within it."""
  at = call.index('py')
  assert call[at : at + 4] == ['py', '-m', 'experiments.job', '--']
  (inner,) = job_lib.calls(call[at + 4 :], 0)
  assert inner[1:3] == ['-m', 'experiments.train']
  argv, before = inner[2:], sys.argv
  with mains.loaded('train'), warnings.catch_warnings():
    warnings.simplefilter('ignore', DeprecationWarning)  # of ml_collections
    sys.argv = argv
    try:
      assert flags.FLAGS(argv) == argv[:1]
    finally:
      sys.argv = before
    found = flags.FLAGS
    config = found['config'].value
    assert config.moe.router == 'top_k(k=2, renormalize=False)'
    assert config.data.domains == ('a b', '$HOME', '*')
    assert found['workdir'].value == '/tmp/it\'s "here"'
    assert found['distributed'].value is True
    return found['check'].value


def test_shellcheck_finds_nothing():
  scripts = [SLURM, TPU, ROOT / '.ci/run']
  shellcheck = pathlib.Path(sysconfig.get_path('scripts')) / 'shellcheck'
  done = subprocess.run([shellcheck, *scripts], capture_output=True, text=True)
  assert done.returncode == 0, done.stdout
  assert all(os.access(s, os.X_OK) for s in scripts)


def test_slurm_checks_then_trains(launch):
  code, calls = launch(SLURM, SLURM_CPUS_PER_TASK='4')
  assert code == 0 and [c[0] for c in calls] == ['srun', 'srun']
  assert [flags_of(c) for c in calls] == [True, False]
  for call in calls:
    # Bound to one GPU each, all but the first would look for another.
    assert {'--gpu-bind=none', '--cpus-per-task=4'} < set(call)
  assert launch(SLURM, SLURM_SUBMIT_DIR='') == (1, [])


@pytest.mark.parametrize(
  ('codes', 'env', 'code', 'last'),
  [
    ('0 143', {}, 143, ['scontrol', 'requeue', '7']),
    ('0 143', {'SLURM_RESTART_COUNT': '100'}, 143, 'srun'),
    ('0 143', {'SLURM_RESTART_COUNT': '2', 'MAX_RESTARTS': '2'}, 143, 'srun'),
    ('0 1', {}, 1, 'srun'),
    ('0 130', {}, 130, 'srun'),
  ],
)
def test_slurm_queues_what_was_told_to_end(launch, codes, env, code, last):
  found, calls = launch(SLURM, codes, **env)
  assert found == code and last in (calls[-1], calls[-1][0])
  assert len(calls) == 2 + (last != 'srun')


def test_slurm_does_not_train_where_the_check_fails(launch):
  code, calls = launch(SLURM, '1')
  assert code == 1 and len(calls) == 1


def test_slurm_is_asked_for_a_warning_and_another_turn():
  """Slurm reads its lines up to the first command."""
  head = SLURM.read_text().partition('\nset -')[0].splitlines()
  assert all(line.startswith('#') for line in head)
  asked = dict(
    line.removeprefix('#SBATCH --').partition('=')[::2]
    for line in head
    if line.startswith('#SBATCH')
  )
  assert re.fullmatch(r'USR1@\d+', asked['signal'])
  assert asked['requeue'] == '' and asked['open-mode'] == 'append'
  assert asked['ntasks-per-node'] == asked['gpus-per-node']
  assert not {'gpus-per-task', 'gpu-bind'} & asked.keys()


def test_tpu_pod_checks_then_trains(launch, tmp_path):
  env = {'TPU': 'slice', 'ZONE': 'z-1', 'REPO': 'the code', 'PROJECT': 'p'}
  code, calls = launch(TPU, **env)
  assert code == 0 and len(calls) == 2
  where = ['slice', '--zone=z-1', '--project=p', '--worker=all']
  looked = []
  (tmp_path / 'the code').mkdir()
  stand_in(tmp_path, 'py')
  for call in calls:
    assert call[:6] == ['gcloud', 'compute', 'tpus', 'tpu-vm', 'ssh', 'slice']
    assert call[5:-1] == where
    (command,) = call[-1:]
    # A shell on the host reads it again.
    record = tmp_path / 'remote'
    record.unlink(missing_ok=True)
    subprocess.run(
      ['bash', '-c', command.removeprefix('--command=')],
      check=True,
      cwd=tmp_path,
      env={
        'PATH': f'{tmp_path}:{os.environ["PATH"]}',
        'CALLS': str(record),
        'CODES': '',
      },
    )
    looked.append(flags_of(record.read_text().rstrip('\n').split('\x1f')))
  assert looked == [True, False]
  assert len(launch(TPU, '1', **env)[1]) == 1
  assert launch(TPU, TPU='slice') == (1, [])


# Runs what it is given twice, as two tasks of a node.
SRUN = r"""#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
export SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2 SLURM_STEP_NUM_NODES=1
SLURM_PROCID=0 SLURM_LOCALID=0 "$@" & first=$!
SLURM_PROCID=1 SLURM_LOCALID=1 "$@" & second=$!
code=0
wait $first || code=$?
wait $second || code=$?
exit $code
"""


@pytest.mark.slow
def test_two_tasks_find_each_other_and_train(launch, tmp_path):
  """By Slurm's variables alone, as JAX reads them."""
  stand_in(tmp_path, 'srun', SRUN)
  fields = saved.corpus(tmp_path) | {'cpu_devices': 2, 'mesh': 'auto(expert=2)'}
  config = tmp_path / 'config.py'
  config.write_text(
    'from tests import tiny\n\n'
    f'def get_config(arg=None):\n  return tiny.config(**{fields!r})\n'
  )
  run = tmp_path / 'run'
  given = [f'--config={config}', f'--workdir={run}']
  # Other jobs of this machine have other numbers, and so other ports.
  env = {
    'PYTHON': sys.executable,
    'PYTHONPATH': str(ROOT),
    'JAX_PLATFORMS': 'cpu',
    'JAX_COMPILATION_CACHE_DIR': str(tmp_path / 'jit'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'SLURM_JOB_ID': str(os.getpid()),
  }
  assert launch(SLURM, given=given, **env)[0] == 0
  assert (run / 'checkpoints/4').is_dir() and (run / 'summary.json').exists()
  more = [*given, '--config.train.steps=99', '--config.train.max_minutes=0.001']
  began = time.monotonic()
  # Process 0 alone looks into the workdir; the other does not wait for ever.
  assert launch(SLURM, given=more, **env)[0] == 1
  assert time.monotonic() - began < 60
  more += ['--allow=train.steps,train.max_minutes']
  code, calls = launch(SLURM, given=more, **env)
  again = ['scontrol', 'requeue', env['SLURM_JOB_ID']]
  assert code == 143 and calls[-1] == again
