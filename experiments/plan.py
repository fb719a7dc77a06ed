"""Compares the dispatch algorithms for a config's MoE layers, without devices.

  python -m experiments.plan --config=configs/st_moe.py:32b \\
      --mesh='data=8,expert=16'

For `einsum`, `scatter`, `gather_reduce` and `ragged_all_to_all` (with the
config's options where it is the config's own) prints the memory of one layer on
one device, bytes on the wire, FLOPs of the dispatch beside the experts', rows
computed for nothing, and what is dropped or clipped; then each buffer; and
recommends one. Nothing is run but the config's router and seating, on random
tokens: of experts that are liked unequally by --skew (the deviation of their
mean logits; 0 is alike), or as the loads of --loads had it. --json prints one
JSON object.

Memory is checked against XLA on CPU in float32, bytes on the wire against its
programs. Recorded loads are averages over whole batches: real groups differ
more from each other, and drop more. Tokens of padding are not simulated.
"""

import json

import jax
from absl import flags
from ml_collections import config_flags

from experiments import cli, modules
from moe_jax.planning import comparison
from moe_jax.training import plans

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Config file, with :arguments; fields by --config.a.b=value.'
)
_MESH = flags.DEFINE_string(
  'mesh',
  '',
  "Sizes of mesh axes: 'data=8,expert=16', also 'exact(..)'. Default: the mesh "
  'of the config, on as many devices as it simulates.',
)
_SKEW = flags.DEFINE_float(
  'skew', 0.5, "Deviation of the experts' mean logits in the simulation."
)
_LOADS = flags.DEFINE_string(
  'loads',
  '',
  "A run's workdir or metrics.jsonl, or JSON: loads for each layer.",
)
_CPU = flags.DEFINE_bool('cpu', False, 'Plan for CPU devices.')
_SEED = flags.DEFINE_integer('seed', 0, 'Of the simulation.')
_BUFFERS = flags.DEFINE_bool('buffers', True, 'A line for each buffer.')
_JSON = flags.DEFINE_bool('json', False, 'Print one JSON object.')
flags.mark_flag_as_required('config')
flags.adopt_module_key_flags(modules)


def main(_: list[str]) -> None:
  """Prints the comparison."""
  modules.allow()
  jax.config.update('jax_platforms', 'cpu')  # others may be in use, or absent
  bare = _MESH.value and '(' not in _MESH.value
  mesh = f'exact({_MESH.value})' if bare else _MESH.value
  plan = plans.compare(
    _CONFIG.value,
    mesh,
    skew=_SKEW.value,
    loads=_LOADS.value,
    cpu=_CPU.value,
    seed=_SEED.value,
  )
  text = comparison.text(plan, _BUFFERS.value)
  print(json.dumps(plan) if _JSON.value else text)


if __name__ == '__main__':
  cli.run(main)
