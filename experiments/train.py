"""Trains a model from a config, and resumes what is in the workdir.

  python -m experiments.train --config=configs/quickstart.py --workdir=/tmp/run
  python -m experiments.train --config=configs/quickstart.py:dense \\
      --config.train.steps=100 --workdir=/tmp/dense

Writes config.json, metrics.jsonl and .csv, summary.json, report.html and its
figures/*.png, checkpoints and TensorBoard events to the workdir and ends with a
table of the scores: bits per byte of text, accuracy of a task (`data.task`),
those of another problem (`data.problem`). A second start resumes; another
config in the same workdir is refused unless --restart or --allow says
otherwise. SIGTERM, SIGUSR1 and Ctrl-C let the step finish and save it; the exit
code is 143, or 130. A second one ends the run at once. A step whose numbers are
not finite is run again, to tell the machine from the data; its batch is kept in
bad_batches/. Exit code 74 is a machine that gave other numbers too often, 75 a
hang (`train.max_step_minutes`). --check trains nothing: it looks at devices,
versions and configs of all processes, and times a sum and an exchange on each
axis of the mesh.
"""

import os

import jax
from absl import flags
from ml_collections import config_flags

from experiments import cli, modules, processes

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Config file, with :arguments; fields by --config.a.b=value.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Directory for everything that is written.', required=True
)
_RESTART = flags.DEFINE_bool(
  'restart', False, 'Move an earlier run in the workdir to previous_<n>/.'
)
_TAKE_OVER = flags.DEFINE_bool(
  'take_over', False, 'The run on another host, which has the lock, is dead.'
)
_ALLOW = flags.DEFINE_list(
  'allow', [], 'Fields in which the config may differ from the earlier run.'
)
_ALLOW_DOWNLOAD = flags.DEFINE_bool(
  'allow_download', False, 'Let TFDS download and prepare a missing data set.'
)
_DEBUG = flags.DEFINE_bool(
  'debug_nonfinite', False, 'Name the layer that makes the first nan, if any.'
)
_CHECK = flags.DEFINE_bool(
  'check', False, 'Only look: are all processes alike, and well connected?'
)
flags.mark_flag_as_required('config')
flags.adopt_module_key_flags(processes)
flags.adopt_module_key_flags(modules)


def main(_: list[str]) -> None:
  """Trains and shows the table."""
  modules.allow()
  config = _CONFIG.value
  processes.start(config.cpu_devices)
  # These need the devices to be set up first.
  from moe_jax.parallel import check
  from moe_jax.plots import report, tables
  from moe_jax.runs import configs
  from moe_jax.training import loop, session

  if _CHECK.value:
    fields = configs.flatten(configs.to_dict(config))
    check.run(fields, lambda: session.plan(config).mesh)
    return
  workdir = _WORKDIR.value
  summary = loop.train(
    config,
    workdir,
    restart=_RESTART.value,
    take_over=_TAKE_OVER.value,
    allow=tuple(_ALLOW.value),
    allow_download=_ALLOW_DOWNLOAD.value,
    debug_nonfinite=_DEBUG.value,
  )
  if jax.process_index() == 0:
    page = report.write(workdir)
    files = {
      'report': page,
      'metrics': os.path.join(workdir, 'metrics.jsonl'),
      'summary': os.path.join(workdir, 'summary.json'),
      'checkpoints': os.path.join(workdir, 'checkpoints'),
      'TensorBoard': os.path.join(workdir, 'tensorboard'),
    }
    print(f'\n{tables.end_of_run(summary, files)}', end='')


if __name__ == '__main__':
  cli.run(main)
