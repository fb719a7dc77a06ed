"""Runs whose models are judged together: opened on one mesh and one data."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from moe_jax.errors import UserError
from moe_jax.runs import workdir as workdir_lib
from moe_jax.training import (
  ensemble,
  fresh_rules,
  kept_data,
  session as session_lib,
)

# What the first run, and the command line, decide for all.
_SHARED = ('data', 'eval', 'seed')


def open_all(
  workdirs: Sequence[str],
  *,
  mesh: str = '',
  fields: Mapping[str, Any] | None = None,
) -> list[ensemble.Member]:
  """The newest checkpoints of runs, on the domains of all of them.

  Args:
    workdirs: of the runs; the first one's data and evaluation are all's.
    mesh: as `config.mesh`; '' is the first one's.
    fields: {'data.dir': ...} in place of the first one's.

  Raises:
    ValueError: no run, twice the same, other vocabularies, or other text than
      a run was trained on.
  """
  if len({*workdirs}) < len(workdirs) or not workdirs:
    raise UserError(f'{",".join(workdirs) or "no runs"}: different runs wanted')
  own = [workdir_lib.load_config(w) for w in workdirs]
  data, members = None, []
  for workdir, config in zip(workdirs, own):
    config = config.copy_and_resolve_references()
    with config.unlocked():
      for name in _SHARED:
        config[name] = own[0][name]
      config.data.domains = _domains(own)
      config.data.weights = ()
      config.update_from_flattened_dict(dict(fields or {}))
    session = session_lib.plan(config, mesh or own[0].mesh, ('eval',))
    if data is None:
      session = session.open(workdir)
      data = session.data
    problem = session.problem.with_kept(workdir, config.train.init_from)
    session = dataclasses.replace(session, problem=problem, data=data)
    state, _ = fresh_rules.of_run(session, workdir)
    what = 'its validation documents may have been trained on'
    kept_data.check_text(data, workdir, what)
    variables = {'params': state.params, 'balance': state.balance}
    name = _names(workdirs)[len(members)]
    members.append(ensemble.Member(name, session, variables))
  return members


def _domains(own: Sequence[Any]) -> tuple[str, ...]:
  """The union; all, where one reads all."""
  found = [tuple(c.data.domains) for c in own]
  return tuple(dict.fromkeys(sum(found, ()))) if all(found) else ()


def _names(workdirs: Sequence[str]) -> list[str]:
  """As many last parts of the paths as tell them apart."""
  parts = [w.rstrip('/').split('/') for w in workdirs]
  for n in range(1, max(map(len, parts)) + 1):
    names = ['/'.join(p[-n:]) for p in parts]
    if len({*names}) == len(names):
      break
  return names
