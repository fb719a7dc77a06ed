"""Arms of several stages: runs are converted, trained on, or judged together.

    add('branch_a', {...}, stage='pretrain', init_from='seed')
    add('btx', {...}, sources=('branch_a', 'branch_b'), convert='mix()')
    add('soup', {}, sources=(...), convert='soup()', judge='bayes()')
    add('btm', {}, sources=(...), judge='bayes(top_k=2)')

`btx` is trained from the mixture, and its overrides say what model that is. An
arm with `judge` is not trained: its one model, or several as an ensemble, are
evaluated on the data of its config. What conversions make stands in the run's
workdir as start_<n>/, each a workdir, so a run that is cut short finds it.
"""

import pathlib
import shlex
import shutil
import time
from collections.abc import Sequence
from typing import Any

from moe_jax import registry
from moe_jax.conversion import making, rope
from moe_jax.data import batches
from moe_jax.planning import counts
from moe_jax.runs import configs
from moe_jax.studies import study as study_lib
from moe_jax.training import embeddings, ensemble, members, probes

# Of what `ensemble.measure` finds, what a row is without: by model.
_MODELS = ('models', 'difference', 'prior')


def converted(
  arm: study_lib.Arm, seed: int, of: Sequence[str], directory: pathlib.Path
) -> list[str]:
  """Workdirs of what the arm begins with: its sources, or made of them.

  Args:
    arm: whose conversions.
    seed: of what they draw.
    of: workdirs of the sources.
    directory: of the run.
  """
  begin = list(of)
  for n, spec in enumerate(arm.convert):
    made = directory / f'start_{n}'
    if not (made / 'checkpoints').exists():
      shutil.rmtree(made, ignore_errors=True)
      if arm.rows and n == 0:
        path = directory / 'rows.npy'
        embeddings.write(begin[0], arm.rows, path)
        spec = _with_rows(spec, path)
      made_of = making.make(spec, begin, made, seed=seed)
      print(f'{spec}: {made_of.numbers:,} parameters, {made}')
    begin = [str(made)]
  return begin


def _with_rows(spec: str, path) -> str:
  name, given = registry.parse(spec)
  return rope.call(name, **{**given, 'rows': str(path)})


def judged(
  arm: study_lib.Arm, config: Any, begin: Sequence[str]
) -> tuple[dict[str, Any], batches.Batches]:
  """(summary, data) of an arm that is not trained.

  Sizes and FLOPs are of all its models together.

  Args:
    arm: with `judge`.
    config: whose data and evaluation are asked for.
    begin: workdirs of its models.
  """
  flat = configs.flatten(config)
  shared = {k: flat[k] for k in flat if k.startswith(('data.', 'eval.'))}
  shared |= {k: tuple(v) for k, v in shared.items() if isinstance(v, list)}
  way = ensemble.build(arm.judge, len(begin))
  found = members.open_all(begin, mesh=config.mesh, fields=shared)
  began = time.monotonic()
  summary = ensemble.measure(found, way)
  sessions = [m.session for m in found]
  leaves = [s.leaves() for s in sessions]
  active = [
    counts.active_parameters(own, s.expert_share())
    for own, s in zip(leaves, sessions)
  ]
  summary |= {
    'eval/seconds': time.monotonic() - began,
    'parameters': sum(map(counts.parameters, leaves)),
    'active_parameters': round(sum(active)),
    'flops_per_token': sum(s.flops_per_token() for s in sessions),
    'steps': 0,
    'tokens': 0,
  }
  if len(found) == 1:
    variables = found[0].variables
    summary |= probes.measure(
      sessions[0], variables['params'], variables['balance']
    )
  kept = {k: v for k, v in summary.items() if k not in _MODELS}
  return kept, sessions[0].data


def commands(
  arm: study_lib.Arm, seed: int, of: Sequence[str], workdir: str
) -> tuple[list[str], str]:
  """What does the same by hand, and what the run then begins with."""
  calls, begin = [], ','.join(of)

  def call(program, **given):
    parts = [f'--{k}={v}' for k, v in given.items()]
    words = map(shlex.quote, parts)
    calls.append(' '.join([f'python -m experiments.{program}', *words]))

  for n, spec in enumerate(arm.convert):
    made = f'{workdir}/start_{n}'
    if arm.rows and n == 0:
      out = f'{workdir}/rows.npy'
      call('embed', **{'from': of[0]}, domains=','.join(arm.rows), out=out)
      spec = _with_rows(spec, out)
    call('convert', method=spec, **{'from': begin}, seed=seed, workdir=made)
    begin = made
  if arm.judge:
    call('ensemble', **{'from': begin}, by=arm.judge, workdir=workdir)
  return calls, begin
