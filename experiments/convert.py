"""Models of models, and open models in and out; the result is a workdir.

  python -m experiments.convert --method='upcycle()' --from=DENSE --workdir=MOE
  python -m experiments.convert --method='mix()' --from=A,B,C --workdir=BTX
  python -m experiments.convert --from_hf=FOLDER --workdir=RUN
  python -m experiments.convert --to_hf=FOLDER --workdir=TUNED --dtype=bfloat16

Methods: moe_jax/conversion/README.md. A folder has config.json, safetensors,
whole or sharded, and, for text, tokenizer.json. Every program takes a workdir:

  python -m experiments.generate --workdir=RUN --prompt='The capital of'
  python -m experiments.evaluate --workdir=RUN --config.data.dir=TEXT
  python -m experiments.train --config=RUN/config.json --workdir=TUNED \\
      --config.train.init_from=RUN --config.train.optimizer='adamw()'

Nothing is written until all fits, and then under another name until it is
whole. Quantised weights (MXFP4, FP8) come in as what they stand for.
"""

import os
import resource
import sys
import time

from absl import flags

from configs import base
from experiments import cli, modules, processes
from moe_jax.errors import UserError

_METHOD = flags.DEFINE_string('method', '', "Call string, as 'mix()'.")
_SOURCES = flags.DEFINE_list('from', [], 'Workdirs that the method is given.')
_SEED = flags.DEFINE_integer('seed', 0, 'Of what the method draws.')
_FROM = flags.DEFINE_string('from_hf', '', 'Folder to read.')
_TO = flags.DEFINE_string('to_hf', '', 'Folder to write; new or empty.')
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Workdir to write, new or empty; or to read.', required=True
)
_DTYPE = flags.DEFINE_string(
  'dtype',
  '',
  "Of the folder that is written: 'float32', 'bfloat16', 'float16'; default as "
  'in the folder that the model came from.',
)
_MAX_SHARD = flags.DEFINE_integer(
  'max_shard', 5 * 10**9, 'Bytes of a file that is written, at most.'
)
_STEP = flags.DEFINE_integer('step', None, 'Checkpoint; default the newest.')
_MESH = flags.DEFINE_string('mesh', 'auto()', 'Mesh to read onto.')
_CPU_DEVICES = flags.DEFINE_integer(
  'cpu_devices', 1, 'Simulated devices, on CPU only.'
)
flags.adopt_module_key_flags(processes)
flags.adopt_module_key_flags(modules)


def main(_: list[str]) -> None:
  """Converts, and says what was done."""
  modules.allow()
  if sum(map(bool, (_METHOD.value, _FROM.value, _TO.value))) != 1:
    raise UserError('give one of --from_hf=FOLDER, --to_hf=FOLDER and --method')
  processes.start(_CPU_DEVICES.value)
  import jax

  from moe_jax.conversion import making, workdirs

  start, made = time.monotonic(), _WORKDIR.value
  if _METHOD.value:
    given = {'seed': _SEED.value, 'step': _STEP.value}
    done = making.make(_METHOD.value, _SOURCES.value, made, **given)
  elif _FROM.value:
    out = base.get_config()
    done = workdirs.from_hub(_FROM.value, made, out, _MESH.value)
  else:
    made = _TO.value
    done = workdirs.to_hub(
      _WORKDIR.value,
      made,
      dtype=_DTYPE.value,
      step=_STEP.value,
      max_shard=_MAX_SHARD.value,
    )
  if jax.process_index() != 0:
    return
  for line in done.lines:
    print(line)
  seconds = time.monotonic() - start
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  peak *= 1 if sys.platform == 'darwin' else 1024
  print(
    f'{done.family}: {done.tensors:,} tensors, {done.numbers:,} parameters, '
    f'{seconds:.1f} s, {peak / 2**30:.2f} GiB at most'
  )
  print(os.path.abspath(made))


if __name__ == '__main__':
  cli.run(main)
