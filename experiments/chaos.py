"""Kills a small run at random, and compares it with one that was left alone.

  python -m experiments.chaos --kills=30 --workdir=/tmp/chaos

SIGKILL and SIGTERM at random moments of start-up, steps and saves; now and then
a flipped bit or a cut file in the newest checkpoint. The last line is an object
with `kills`, `survived` and `mismatches`: each logged number, the last arrays
and the summary are compared, to the bit; with --vary to 1e-4, over fewer steps.
The exit code is 1 where something differed.
"""

import json
import os
import pathlib
import sys

from absl import flags

from experiments import cli

_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Directory for everything that is written.', required=True
)
_KILLS = flags.DEFINE_integer('kills', 30, 'How many.', 0)
_SEED = flags.DEFINE_integer('seed', 0, 'Of the moments and of the damage.')
_VARY = flags.DEFINE_bool(
  'vary', False, 'Another mesh, and one or two processes, at each start.'
)
_STEPS = flags.DEFINE_integer('steps', 0, 'Of a run; 0: 200, 60 with --vary.')

_FIELDS = {
  'cpu_devices': 8,
  'model.num_layers': 1,
  'model.d_model': 16,
  'model.d_head': 16,
  'moe.num_experts': 4,
  'moe.d_ff': 32,
  'moe.group_size': 64,
  'data.name': 'text_files',
  'data.seq_len': 32,
  'train.batch_size': 16,
  'train.log_every': 1,
  'train.checkpoint_every': 5,
  'train.eval_every': 50,
  'train.keep': 3,
  'eval.batch_size': 16,
  'eval.max_bytes': 2048,
}


# Devices, mesh and processes (0 is one, without a job).
_STARTS = (
  (1, 'auto()', 0),
  (4, 'auto(expert=2)', 0),
  (8, 'auto(expert=4)', 0),
  (8, 'auto(expert=4)', 2),
)


def main(_: list[str]) -> int:
  """Runs the twin, then the disturbed run, and prints what differed."""
  from moe_jax.runs import chaos

  root = pathlib.Path(_WORKDIR.value).absolute()
  chaos.write_text(root / 'text')
  cache = str(root / 'jit_cache')
  os.environ['JAX_COMPILATION_CACHE_DIR'] = cache
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
  fields = _FIELDS | {
    'data.dir': str(root / 'text'),
    'data.cache': str(root / 'data'),
    # Sums in another order grow: by step 130 a token has another expert.
    'train.steps': _STEPS.value or (60 if _VARY.value else 200),
  }
  given = [f'--config.{k}={v}' for k, v in fields.items()]
  config = ['--config=configs/quickstart.py', '--config.data.weights=()']
  call = [sys.executable, '-m', 'experiments.train', *config, *given]

  def command(workdir, draw):
    if not _VARY.value or workdir.name == 'twin':
      return [*call, f'--workdir={workdir}']
    devices, mesh, processes = draw.choice(_STARTS)
    job = ['-m', 'experiments.job', f'--processes={processes}', '--']
    fields = [f'--config.cpu_devices={devices}', f'--config.mesh={mesh}']
    where = [*fields, '--allow=cpu_devices,mesh', f'--workdir={workdir}']
    return [sys.executable, *job, *call[2:], *where]

  tolerance = 1e-4 if _VARY.value else 0.0
  made = chaos.Chaos(command, root, _SEED.value, tolerance)
  found = made.run(_KILLS.value)
  print(json.dumps(found))
  return 1 if found['mismatches'] else 0


if __name__ == '__main__':
  cli.run(main)
