"""Times the layer, its products and whole steps beside their baselines.

  python -m experiments.bench --suite=layer --baseline=dense --workdir=DIR

Suites: layer (forward and backward of the MoE layer), memory and scaling of it,
kernel (grouped products), step (a decoder's training step, its time by part),
compile, parallel (8 simulated devices). Baselines of suite layer: dense,
ragged_dot, and, with the extra `oracle`, hf and st_moe_pytorch. Candidates run
in turn, a, b, c, a, b, c, ...; a ratio is the median over rounds of two times
of the same round. --workdir receives bench.json and the figure of suite
scaling; with --profile traces. The exit code is 1 where a candidate failed.
"""

import json
import pathlib

from absl import flags

from experiments import cli, modules
from moe_jax.errors import UserError

_SUITE = flags.DEFINE_string('suite', 'layer', 'What is measured.')
_BASELINE = flags.DEFINE_list('baseline', ['dense'], 'What it is beside.')
_CASES = flags.DEFINE_list(
  'cases', [], 'Only cases whose name contains one of these.'
)
_REPEATS = flags.DEFINE_integer('repeats', 7, 'Rounds.', lower_bound=1)
_TOKENS = flags.DEFINE_integer('tokens', 4096, 'Tokens of the layer suites.')
_WIDTH = flags.DEFINE_integer('width', 512, 'Their width D.')
_GROUP_SIZE = flags.DEFINE_integer('group_size', 0, 'Theirs; 0 is one group.')
_CAPACITY = flags.DEFINE_float('capacity_factor', 1.0, 'Where tokens drop.')
_EXPERTS = flags.DEFINE_string(
  'experts', "mlp(activation='relu')", "Expert kind; 'glu()' is SwiGLU."
)
_ZIPF = flags.DEFINE_float('zipf', 0.0, 'Exponent of a skewed load; 0 is none.')
_DTYPE = flags.DEFINE_enum(
  'dtype', 'float32', ['float32', 'bfloat16'], 'Theirs.'
)
_NAIVE = flags.DEFINE_bool('naive', False, 'Also a loop over all experts.')
_PROFILE = flags.DEFINE_bool('profile', False, 'Write traces to the workdir.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Where results go.')
flags.adopt_module_key_flags(modules)


def main(_: list[str]) -> int:
  """Prints the tables; 1 where a candidate failed."""
  modules.allow()
  from moe_jax.benchmarks import (
    cases,
    costs,
    layers,
    machine,
    report,
    scopes,
    suites,
  )
  from moe_jax.parallel import distributed
  from moe_jax.plots import scaling, style, tables

  if _PROFILE.value and not _WORKDIR.value:
    raise UserError('--profile writes to a workdir: give --workdir')
  distributed.simulate(costs.DEVICES if _SUITE.value == 'parallel' else 1)
  if _SUITE.value == 'step':
    scopes.name_kernels()
  options = layers.Options(
    tokens=_TOKENS.value,
    D=_WIDTH.value,
    experts=_EXPERTS.value,
    group_size=_GROUP_SIZE.value,
    capacity_factor=_CAPACITY.value,
    zipf=_ZIPF.value,
    dtype=_DTYPE.value,
  )
  chosen = suites.build(
    _SUITE.value, options, _BASELINE.value, _NAIVE.value, _CASES.value
  )
  workdir = pathlib.Path(_WORKDIR.value) if _WORKDIR.value else None
  if workdir:
    workdir.mkdir(parents=True, exist_ok=True)

  rows, load = [], machine.load()
  for i, case in enumerate(chosen):
    trace = str(workdir / f'profile/{i}') if _PROFILE.value else ''
    rows.append(cases.run(case, _REPEATS.value, trace=trace))
    table = tables.text(*report.table(rows[-1]))
    print(table, *report.parts(rows[-1]), '', sep='\n', flush=True)
    record = report.record(rows, _REPEATS.value, load)
    if workdir:
      (workdir / 'bench.json').write_text(json.dumps(record, indent=1))
  if workdir and _SUITE.value == 'scaling':
    style.png(scaling.scaling(record), str(workdir / 'scaling.png'))
  failures = report.failures(rows)
  print('\n'.join([report.machine_line(record), *failures]))
  return 1 if failures else 0


if __name__ == '__main__':
  cli.run(main)
