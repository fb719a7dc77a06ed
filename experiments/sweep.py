"""Runs a study: all its arms with all their seeds, and resumes.

  python -m experiments.sweep --workdir=/tmp/moe_jax/capacity_factor \\
      --config=configs/ablations/capacity_factor.py:quick

A run is one arm with one seed; the runs of a seed see the same data in the same
order. WORKDIR/results.jsonl gets a line a run; a finished run is not repeated.
A run that fails is recorded with its error and the rest goes on; the exit code
is then 1. Fields of all arms change by --config.a.b=value. --jobs=2 is for two
processes that share the cores, each with what is left to do; --done=FILE keeps
the rows elsewhere, too, and goes on from there. Several machines:

  python -m experiments.sweep ... --array_task=$SLURM_ARRAY_TASK_ID/8
"""

import sys

from absl import flags
from ml_collections import config_flags

from experiments import cli, modules
from moe_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Study file, with :size; fields by --config.a.b=value.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Directory for everything that is written.', required=True
)
_ONLY = flags.DEFINE_list('only', [], 'Names of arms; default all.')
_SEEDS = flags.DEFINE_integer(
  'seeds', 0, "In place of the study's; 0 is those."
)
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print commands and time only.')
_TASK = flags.DEFINE_string('array_task', '', "Part i of n, 'i/n', i from 0.")
_JOBS = flags.DEFINE_integer('jobs', 1, 'Processes, on this machine.', 1)
_WORKER = flags.DEFINE_string('worker', '', 'Set by --jobs: process i of n.')
_DONE = flags.DEFINE_string(
  'done', '', 'A file of rows to go on from, and to add to after each run.'
)
_PRETRAINED = flags.DEFINE_string(
  'pretrained', '', "Another sweep's workdir: its runs for 'pretrain' arms."
)
_ALLOW_DOWNLOAD = flags.DEFINE_bool(
  'allow_download', False, 'Let TFDS download and prepare a missing data set.'
)
flags.mark_flag_as_required('config')
flags.adopt_module_key_flags(modules)


def main(argv: list[str]) -> int:
  """Runs what is left to run; 1 where a run failed."""
  modules.allow()
  config = _CONFIG.value
  index, count = map(int, (_WORKER.value or '0/1').split('/'))
  from moe_jax.parallel import distributed
  from moe_jax.studies import workers

  workers.pin(index, count)

  distributed.simulate(config.cpu_devices)
  from moe_jax.studies import runner, study as study_lib

  values = config_flags.get_override_values(flags.FLAGS['config'])
  study = study_lib.load(
    config_flags.get_config_filename(flags.FLAGS['config']),
    config=config,
    flags=values,
    seeds=_SEEDS.value,
  )
  todo = runner.runs(study, _ONLY.value, _TASK.value)
  if _DRY_RUN.value:
    where = _WORKDIR.value, todo, _PRETRAINED.value, _DONE.value
    print(runner.plan(study, *where))
    return 0
  if _JOBS.value > 1:
    if _TASK.value:
      raise UserError('--jobs and --array_task exclude each other')
    call = [sys.executable, '-m', 'experiments.sweep', *sys.argv[1:]]
    return workers.run(call, _JOBS.value)
  failed = runner.sweep(
    study,
    _WORKDIR.value,
    todo,
    pretrained=_PRETRAINED.value,
    done=_DONE.value,
    processes=count,
    allow_download=_ALLOW_DOWNLOAD.value,
  )
  if failed:
    print(f'{len(failed)} of {len(todo)} runs failed', file=sys.stderr)
  return 1 if failed else 0


if __name__ == '__main__':
  cli.run(main)
