"""Looks inside a run: which experts its tokens go to, and what that says.

  python -m experiments.analyze --workdir=/tmp/run
  python -m experiments.analyze --workdir=/tmp/run --checkpoints=all
  python -m experiments.analyze --workdir=/tmp/olmoe --text=FOLDER \\
      --max_bytes=500_000 --remove_experts

Runs the newest checkpoint over the run's validation text, or over a folder of
.txt files, a domain each, and writes to analysis/ in the workdir: routing/, the
record of every token's experts (moe_jax/analysis/records.py says what is in it;
of an encoder-decoder the encoder's is routing_encoder/), metrics.json, and
report.html, which needs nothing else. experiments.evaluate --replay takes the
record.
"""

import math

import jax
from absl import flags

from experiments import cli, modules, processes
from moe_jax.errors import UserError

_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Workdir of the run.', required=True
)
_CHECKPOINTS = flags.DEFINE_string(
  'checkpoints', 'newest', "'newest', 'all' (saturation), or steps: 100,200."
)
_COMPARE = flags.DEFINE_string(
  'compare', '', 'Workdir of a run whose experts are matched with these.'
)
_TEXT = flags.DEFINE_string(
  'text', '', "Folder of .txt files in place of the run's validation."
)
_MAX_BYTES = flags.DEFINE_integer(
  'max_bytes', 2_000_000, 'Of the text, shared by its domains; 0 is all.'
)
_REMOVE = flags.DEFINE_bool(
  'remove_experts', False, 'Also find the loss without each expert.'
)
_FACTORS = flags.DEFINE_list(
  'capacity_factors', [], 'Factors that drops are counted at: 1.0,1.25.'
)
_MESH = flags.DEFINE_string('mesh', 'auto()', 'Mesh to run on.')
_CPU_DEVICES = flags.DEFINE_integer('cpu_devices', 1, 'Simulated, on CPU.')
flags.adopt_module_key_flags(processes)
flags.adopt_module_key_flags(modules)


def main(_: list[str]) -> None:
  """Analyses the run, and says where the report is."""
  modules.allow()
  factors = [_factor(v) for v in _FACTORS.value]
  processes.start(_CPU_DEVICES.value)
  from moe_jax.analysis import analyses
  from moe_jax.plots import routing_page
  from moe_jax.runs import writers

  first = jax.process_index() == 0
  analysis = analyses.Analysis(
    _WORKDIR.value,
    _MESH.value,
    _TEXT.value,
    _MAX_BYTES.value,
    print if first else lambda line: None,
  )
  steps = analyses.steps(_WORKDIR.value, _CHECKPOINTS.value)
  if _CHECKPOINTS.value == 'all' and len(steps) == 1:
    analysis.tell(
      f'step {steps[0]} is the only checkpoint, and saturation needs two: '
      'train.keep and train.keep_at say which stay'
    )
  metrics = analyses.run(
    analysis,
    steps,
    compare=_COMPARE.value,
    factors=factors,
    remove=_REMOVE.value,
  )
  if first:
    writers.write_json(analysis.out / 'metrics.json', metrics)
    page = routing_page.write(analysis.out)
    print(*metrics['words'], sep='\n')
    print(f'report: {page}')


def _factor(text: str) -> float:
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  if not 0 < value < math.inf:
    raise UserError(f'--capacity_factors: {text!r} is no number above 0')
  return value


if __name__ == '__main__':
  cli.run(main)
