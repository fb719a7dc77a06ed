"""What a person would type to do one run of a study."""

import shlex
from typing import Any

from moe_jax import registry
from moe_jax.runs import configs
from moe_jax.studies import (
  inside,
  origins,
  results,
  stages,
  study as study_lib,
)
from moe_jax.training import checks


def of(
  study: study_lib.Study, run: Any, found: origins.Origins, path: str
) -> str:
  """What runs this run alone; paths of the command line by their names.

  Args:
    study, run: of the run, `runner.Run`.
    found: whose workdirs are named.
    path: of the study, as it is to be named.
  """
  config = study.config_of(run.arm, run.seed)
  flat = {**study.flags, **run.arm.overrides, 'seed': run.seed}
  flat = results.placeholders(flat)
  fields = found.fields(study, run.arm, run.seed)
  flat |= {f'train.{k}': v for k, v in fields.items()}
  if run.arm.sources:
    keys = origins.sources(study, run.arm, run.seed)
    of = [found.directory(key) for key in keys]
    own = f'{found.workdir}/{run.directory}'
    calls, begin = stages.commands(run.arm, run.seed, of, own)
    if run.arm.judge:
      return ' && '.join(calls)
    flat['train.init_from'] = begin
  else:
    calls = []
  parts = [
    'python -m experiments.train',
    f'--config={path}:{study.size}',
    *_modules(study, run),
    *(f'--config.{k}={v}' for k, v in flat.items()),
    f'--workdir={found.workdir}/{run.directory}',
  ]
  calls.append(' '.join([parts[0], *map(shlex.quote, parts[1:])]))
  if study.analysis and checks.sparse_stacks(config):
    calls.append(inside.command(study, f'{found.workdir}/{run.directory}'))
  return ' && '.join(calls)


def _modules(study: study_lib.Study, run: Any) -> list[str]:
  """The flag of the modules that the run's call strings import, if any."""
  values = configs.flatten(study.config_of(run.arm, run.seed)).values()
  named = [
    m for m in registry.allowed() if f'{m}.' in ' '.join(map(str, values))
  ]
  return [f'--allow_modules={",".join(named)}'] if named else []
