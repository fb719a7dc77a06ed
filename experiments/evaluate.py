"""Evaluates a run's checkpoint on the validation set, by domain.

  python -m experiments.evaluate --workdir=/tmp/run
  python -m experiments.evaluate --workdir=/tmp/run --cpu_devices=4 \\
      --mesh='auto(expert=2)' --capacity_factor=1.0
  python -m experiments.evaluate --workdir=/tmp/olmoe --config.data.dir=TEXT
  python -m experiments.evaluate --workdir=/tmp/moe --against=/tmp/dense

Reads the config and the checkpoint of the run in the workdir, chooses a mesh of
its own, prints the table and writes evaluation/summary.json there. With
--against, also its scores less those of another run's newest checkpoint, by
the same documents, with 95 % intervals of the difference. With --replay, on the
text of a routing record (experiments.analyze) and with its choices of experts:
also how many of them the router would make itself, by layer.
"""

import os

import jax
from absl import flags

from configs import base
from experiments import cli, modules, processes, steps

_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Workdir of the training run.', required=True
)
_AGAINST = flags.DEFINE_string(
  'against', '', 'Workdir of another run on the same data, to compare with.'
)
_REPLAY = flags.DEFINE_string(
  'replay', '', 'Routing record whose choices are made again.'
)
_CONFIG = cli.define_fields(
  'config',
  base.get_config(),
  "Fields of data and eval in place of the run's.",
)
_MESH = flags.DEFINE_string('mesh', 'auto()', 'Mesh to evaluate on.')
_CPU_DEVICES = flags.DEFINE_integer('cpu_devices', 1, 'Simulated, on CPU.')
_CAPACITY = flags.DEFINE_float(
  'capacity_factor', None, "In place of the run's; 0 is dropless."
)
flags.adopt_module_key_flags(processes)
flags.adopt_module_key_flags(modules)
flags.adopt_module_key_flags(steps)


def main(_: list[str]) -> None:
  """Evaluates and shows the table."""
  modules.allow()
  processes.start(_CPU_DEVICES.value)
  from moe_jax.plots import tables
  from moe_jax.runs import writers

  step = steps.chosen(_WORKDIR.value)
  asked = _CAPACITY.value, step, _REPLAY.value
  session, evaluate, state = _open(_WORKDIR.value, *asked)
  summary = evaluate(state.params, state.balance)
  if not _REPLAY.value:  # whose text may be none that a run was trained on
    summary |= evaluate.floor()
  summary |= session.problem.described()
  summary['step'] = int(state.step)
  if _AGAINST.value:
    _, other, theirs = _open(_AGAINST.value)
    summary |= evaluate.against(state, other, theirs)
  workdir = os.path.join(_WORKDIR.value, 'evaluation')
  if jax.process_index() == 0:
    file = 'replay.json' if _REPLAY.value else 'summary.json'
    out = os.path.join(workdir, file)
    try:
      os.makedirs(workdir, exist_ok=True)
      writers.write_json(out, summary)
    except OSError as e:  # someone else's run, as often as not
      out = f'not written: {e.strerror}'
    print(tables.end_of_run(summary, {'summary': out}), end='')


def _open(workdir, factor=None, step=None, replay=''):
  """Session, evaluator and state of a run, on the mesh that is asked for."""
  from moe_jax.runs import workdir as workdir_lib
  from moe_jax.training import checks, evaluation, fresh_rules

  config = workdir_lib.load_config(workdir)
  config.update_from_flattened_dict(cli.overrides('config', ('data', 'eval')))
  if factor is not None:
    config = checks.with_eval_factor(config, factor)
  if replay:
    from moe_jax.analysis import replaying

    session = replaying.opened(config, workdir, replay, mesh_spec=_MESH.value)
    state, _ = fresh_rules.of_run(session, workdir, step)
  else:
    session, state = evaluation.of_run(config, workdir, _MESH.value, step)
  return session, evaluation.Evaluator(session), state


if __name__ == '__main__':
  cli.run(main)
