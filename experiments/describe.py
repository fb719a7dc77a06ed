"""Counts a model and its placement on a mesh, without devices and data.

  python -m experiments.describe --config=configs/st_moe.py:32b \\
      --mesh='exact(data=8,expert=16)'

Prints parameters by part, total and active; model FLOPs; bytes on each device
of parameters, gradients and optimizer state, by their real shardings; what the
dispatches of a training step exchange; and, unless --noparams, a line for each
parameter: shape, logical axes, mesh axes and bytes on a device. --json prints
one JSON object instead. Its `flops_per_token` is of training, 3 x forward, over
encoder and target tokens alike; `flops_per_target_token`, which MFU is reckoned
with, divides by the target tokens alone (a decoder's are all it has).
`all_to_all_bytes_per_step` is what leaves its device, all devices together,
whatever the collective, at balanced loads. `experiments.plan` compares
dispatches, and counts a layer's buffers.
--hf_config=FOLDER/config.json describes an open model, without its weights.
--methods prints all methods of the repository instead, a line each: family,
name, paper, whether it is causal, can do without a capacity, has a state, and
how it is tested; --markdown for a page, --json with a summary of each.
Not counted: activations, and what FSDP and tensor parallelism exchange.
"""

import json
import pathlib

import jax
from absl import flags
from ml_collections import config_flags

from configs import base
from experiments import cli, modules
from moe_jax import citations, json_files
from moe_jax.conversion import workdirs
from moe_jax.errors import UserError
from moe_jax.planning import report
from moe_jax.training import plans

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Config file, with :arguments; fields by --config.a.b=value.'
)
_HF_CONFIG = flags.DEFINE_string(
  'hf_config', '', "Describe the model of this config.json of the hub's."
)
_MESH = flags.DEFINE_string(
  'mesh',
  '',
  'Sizes of the mesh axes data, fsdp, expert, model. Default: the mesh of the '
  'config, on as many devices as it simulates (config.cpu_devices).',
)
_JSON = flags.DEFINE_bool('json', False, 'Print one JSON object.')
_PARAMS = flags.DEFINE_bool('params', True, 'A line for each parameter.')
_METHODS = flags.DEFINE_bool('methods', False, 'List all methods instead.')
_MARKDOWN = flags.DEFINE_bool('markdown', False, 'The methods in Markdown.')
flags.adopt_module_key_flags(modules)


def main(_: list[str]) -> None:
  """Prints the description."""
  modules.allow()
  jax.config.update('jax_platforms', 'cpu')  # others may be in use, or absent
  if _METHODS.value:
    rows = citations.methods()
    form = citations.markdown if _MARKDOWN.value else citations.table
    print(json.dumps(rows) if _JSON.value else form(rows))
    return
  config = _CONFIG.value
  if _HF_CONFIG.value:
    path = pathlib.Path(_HF_CONFIG.value)
    said = json_files.read(path / 'config.json' if path.is_dir() else path)
    config = workdirs.described(said, base.get_config())
  if config is None:
    raise UserError('give --config=FILE, --hf_config=FILE, or --methods')
  plan = plans.describe(config, _MESH.value)
  print(json.dumps(plan) if _JSON.value else report.text(plan, _PARAMS.value))


if __name__ == '__main__':
  cli.run(main)
