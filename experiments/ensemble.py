"""Judges several runs as one model, beside each of them, by domain.

  python -m experiments.ensemble --from=B/code,B/prose,B/c --workdir=/tmp/btm
  python -m experiments.ensemble --from=B/code,B/prose,B/c --workdir=/tmp/btm \\
      --by='bayes(top_k=2)' --config.data.domains="('code',)"

The next token's probabilities are averaged by the posterior of the domain,
which is Bayes' on the tokens before (Branch-Train-Merge, arXiv:2208.03306), or
logits by the models' losses, --by='logits(tau=1.0)'. Data are those of the
first run, on the domains of all. Prints bits a byte by domain, and what the
ensemble is above each model with its 95 % interval; writes summary.json to the
workdir.
"""

import os

import jax
from absl import flags

from configs import base
from experiments import cli, modules, processes

_FROM = flags.DEFINE_list('from', [], 'Workdirs of the runs.')
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Directory for what is written.', required=True
)
_BY = flags.DEFINE_string('by', 'bayes()', "Call string; or 'logits()'.")
_CONFIG = cli.define_fields(
  'config',
  base.get_config(),
  "Fields of data and eval in place of the first run's.",
)
_MESH = flags.DEFINE_string('mesh', 'auto()', 'Mesh to evaluate on.')
_CPU_DEVICES = flags.DEFINE_integer('cpu_devices', 1, 'Simulated, on CPU.')
flags.adopt_module_key_flags(processes)
flags.adopt_module_key_flags(modules)


def main(_: list[str]) -> None:
  """Evaluates and shows the tables."""
  modules.allow()
  processes.start(_CPU_DEVICES.value)
  from moe_jax.plots import tables
  from moe_jax.runs import writers
  from moe_jax.training import ensemble, members

  way = ensemble.build(_BY.value, len(_FROM.value))
  fields = cli.overrides('config', ('data', 'eval'))
  found = members.open_all(_FROM.value, mesh=_MESH.value, fields=fields)
  summary = {'by': _BY.value} | ensemble.measure(found, way)
  if jax.process_index() == 0:
    os.makedirs(_WORKDIR.value, exist_ok=True)
    out = os.path.join(_WORKDIR.value, 'summary.json')
    writers.write_json(out, summary)
    for table in tables.ensemble(summary):
      print(tables.text(*table), end='\n\n')
    print(out)


if __name__ == '__main__':
  cli.run(main)
