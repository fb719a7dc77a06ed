"""Branches a run: one run a domain, each from its parameters.

  python -m experiments.branch --from=SEED --domains=code,prose,c \\
      --workdir=BRANCHES --jobs=3 --config.train.steps=400

BRANCHES/<domain> is then the workdir of a run that every program takes; its
lineage.json says which parameters it began with. The config is the seed's, on
the one domain, with fields by --config.a.b=value: a schedule, for one, begins
anew. The same command goes on with what is not finished; --jobs is for
processes that share the cores. Ends with a table, and BRANCHES/summary.json.

  python -m experiments.ensemble --from=BRANCHES/code,BRANCHES/c --workdir=BTM
  python -m experiments.convert --method='mix()' --workdir=BTX \\
      --from=BRANCHES/code,BRANCHES/c
"""

import sys

from absl import flags

from configs import base
from experiments import cli, modules

_FROM = flags.DEFINE_string('from', None, 'Workdir of the seed.', required=True)
_DOMAINS = flags.DEFINE_list('domains', [], "Of the seed's data.")
_WORKDIR = flags.DEFINE_string(
  'workdir', None, "Directory of the branches' workdirs.", required=True
)
_CONFIG = cli.define_fields(
  'config', base.get_config(), "Fields in place of the seed's."
)
_JOBS = flags.DEFINE_integer('jobs', 1, 'Processes, on this machine.', 1)
_WORKER = flags.DEFINE_string('worker', '', 'Set by --jobs: process i of n.')
_ALLOW_DOWNLOAD = flags.DEFINE_bool(
  'allow_download', False, 'Let TFDS download and prepare a missing data set.'
)
flags.adopt_module_key_flags(modules)


def main(_: list[str]) -> int:
  """Trains what is left; 1 where a branch failed."""
  modules.allow()
  index, count = map(int, (_WORKER.value or '0/1').split('/'))
  from moe_jax.parallel import distributed
  from moe_jax.runs import workdir as workdir_lib
  from moe_jax.studies import workers

  workers.pin(index, count)
  seed, root, domains = _FROM.value, _WORKDIR.value, _DOMAINS.value
  fields = cli.overrides('config', tuple(base.get_config()))
  devices = workdir_lib.load_config(seed).cpu_devices
  distributed.simulate(fields.get('cpu_devices', devices))
  from moe_jax.plots import tables
  from moe_jax.studies import branches

  made = branches.plan(seed, domains, root, fields)
  if not _WORKER.value:
    branches.begin(seed, root, made)
  code = 0
  if _JOBS.value > 1:
    call = [sys.executable, '-m', 'experiments.branch', *sys.argv[1:]]
    code = workers.run(call, min(_JOBS.value, len(made)))
  else:
    given = {'allow_download': _ALLOW_DOWNLOAD.value}
    branches.train(root, made, index=index, count=count, **given)
  if not _WORKER.value:
    found = branches.cells(branches.summary(root, domains))
    print(tables.text(branches.HEADER, found))
  return code


if __name__ == '__main__':
  cli.run(main)
