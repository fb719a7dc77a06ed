"""Evaluates a run's checkpoint on the validation set, by domain.

  python -m experiments.evaluate --workdir=/tmp/run
  python -m experiments.evaluate --workdir=/tmp/run --cpu_devices=4 \\
      --mesh='auto(expert=2)' --capacity_factor=1.0

Reads the config and the checkpoint of the run in the workdir, chooses a mesh of
its own, prints the table and writes evaluation/summary.json there.
"""

import os

import jax
from absl import flags

from experiments import cli, processes
from moe_jax.errors import UserError

_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Workdir of the training run.', required=True
)
_MESH = flags.DEFINE_string('mesh', 'auto()', 'Mesh to evaluate on.')
_CPU_DEVICES = flags.DEFINE_integer(
  'cpu_devices', 1, 'Simulated devices, on CPU only.'
)
_CAPACITY = flags.DEFINE_float(
  'capacity_factor', None, "In place of the run's; 0 is dropless."
)
_STEP = flags.DEFINE_integer('step', None, 'Checkpoint; default the newest.')
flags.adopt_module_key_flags(processes)


def main(_: list[str]) -> None:
  """Evaluates and shows the table."""
  processes.start(_CPU_DEVICES.value)
  from moe_jax.plots import tables
  from moe_jax.runs import configs, workdir as workdir_lib, writers
  from moe_jax.training import (
    checks,
    evaluation,
    fresh_rules,
    session as session_lib,
  )

  config = configs.from_dict(workdir_lib.read_config(_WORKDIR.value))
  if _CAPACITY.value is not None:
    config = checks.with_eval_factor(config, _CAPACITY.value)
  session = session_lib.make(
    config, _WORKDIR.value, mesh_spec=_MESH.value, splits=('eval',)
  )
  state, data = fresh_rules.of_run(session, _WORKDIR.value, _STEP.value)
  if data['fingerprint'] != session.data.fingerprint:
    raise UserError(
      f'{_WORKDIR.value} was trained on other data than is found now; its '
      'validation documents may have been trained on'
    )
  evaluate = evaluation.Evaluator(session)
  summary = evaluate(state.params, state.balance) | evaluate.floor()
  summary |= session.problem.described()
  summary['step'] = int(state.step)
  workdir = os.path.join(_WORKDIR.value, 'evaluation')
  if jax.process_index() == 0:
    os.makedirs(workdir, exist_ok=True)
    out = os.path.join(workdir, 'summary.json')
    writers.write_json(out, summary)
    print(tables.end_of_run(summary, {'summary': out}), end='')


if __name__ == '__main__':
  cli.run(main)
