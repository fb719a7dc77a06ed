"""Where a model came from, and what it cost: `lineage.json` of a workdir.

    {"method": "mix()",
     "digest": of the parameters that were made,
     "sources": [{"workdir": name, "step": 500, "digest": ...}, ...],
     "ancestors": digests of all that it comes of, itself among them,
     "stages": [{"name": ..., "digest": ..., "tokens": ..., "flops": ...}, ...]}

A stage is a run: what it was trained on beyond what it began with; several
branches of one seed have the seed's stage once. A run that has no such file
comes of its `train.init_from`, as that is now: where a seed may be trained on,
write a branch's lineage when it starts.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from moe_jax import json_files
from moe_jax.conversion import folders, trees
from moe_jax.errors import UserError
from moe_jax.runs import checkpoint, meta

_DEEPEST = 64  # runs that begin with one another


@dataclasses.dataclass(frozen=True)
class Lineage:
  """Of a checkpoint.

  Attributes:
    workdir: its name.
    step: of the checkpoint.
    digest: of its parameters.
    ancestors: digests, its own among them.
    stages: of all that it comes of, the first first.
  """

  workdir: str
  step: int
  digest: str
  ancestors: frozenset[str]
  stages: tuple[Mapping[str, Any], ...]

  def source(self) -> dict[str, Any]:
    """As in the file."""
    names = ('workdir', 'step', 'digest')
    return {name: getattr(self, name) for name in names}


def of(
  workdir: folders.Path,
  step: int | None = None,
  model: trees.Model | None = None,
  known: dict[pathlib.Path, Lineage] | None = None,
) -> Lineage:
  """The lineage of a run's checkpoint.

  Args:
    workdir: of the run.
    step: None is the newest.
    model: of it, where it has been read.
    known: of runs that others began with, which are read once; it is added to.

  Raises:
    ValueError: no run; a lineage.json that is none.
  """
  known = {} if known is None else known
  return _of(pathlib.Path(workdir), step, model, known, 0)


def _of(path, step, model, known, depth) -> Lineage:
  model = model or trees.read(path, step)
  step = _newest(path) if step is None else step
  own, config = trees.digest(model), model.config
  ancestors, stages = set(), []
  if (path / trees.LINEAGE).is_file():
    told = _read(path / trees.LINEAGE)
    ancestors |= {told['digest'], *told['ancestors']} - {''}
    ancestors |= {s['digest'] for s in told['sources']}
    stages += told['stages']
  elif config.train.init_from and not config.train.init_dense:
    if depth == _DEEPEST:
      raise UserError(f'{path}: its train.init_from goes round in a circle')
    began = pathlib.Path(config.train.init_from)
    if (began / 'config.json').is_file():
      if began not in known:
        known[began] = _of(began, None, None, known, depth + 1)
      before = known[began]
      ancestors |= before.ancestors
      stages += before.stages
  if step and own not in ancestors:
    stages.append(
      {'name': path.absolute().name, 'digest': own} | cost(model, step)
    )
  name = path.absolute().name
  return Lineage(name, step, own, frozenset({*ancestors, own}), tuple(stages))


def cost(model: trees.Model, steps: int) -> dict[str, float]:
  """{'tokens', 'flops'} of so many steps of training with its config.

  Target tokens, padding included; FLOPs of the model, forward and backward:
  `planning.counts`.
  """
  session = trees.session(model)
  tokens = steps * model.config.train.batch_size * session.lengths['decoder']
  return {'tokens': tokens, 'flops': tokens * session.flops_per_token()}


def told(method: str, made: str, sources: Sequence[Lineage]) -> dict[str, Any]:
  """What lineage.json says.

  Args:
    method: call string.
    made: digest of what was made; '' where that is still to be trained.
    sources: what it was made of.
  """
  stages = {s['digest']: dict(s) for own in sources for s in own.stages}
  ancestors = {d for own in sources for d in own.ancestors} | {made}
  return {
    'method': method,
    'digest': made,
    'sources': [own.source() for own in sources],
    'ancestors': sorted(ancestors - {''}),
    'stages': list(stages.values()),
  }


def check_related(found: Sequence[Lineage]) -> None:
  """Raises ValueError where models have no ancestor in common."""
  first = found[0]
  for own in found[1:]:
    if not first.ancestors & own.ancestors:
      raise UserError(
        f'{own.workdir} ({own.digest[:12]}) and {first.workdir} '
        f'({first.digest[:12]}) do not descend from one seed: neither their '
        'lineage.json nor their train.init_from name an ancestor of both'
      )


def _newest(path: pathlib.Path) -> int:
  directory = path / 'checkpoints'
  return max(meta.genuine(directory, checkpoint.steps(directory)))


def _read(path: pathlib.Path) -> dict[str, Any]:
  found = {'digest': '', 'ancestors': [], 'sources': [], 'stages': []}
  found |= json_files.read(path)
  lists = all(isinstance(found[k], list) for k in ('ancestors', 'stages'))
  keys = {'name', 'digest', 'tokens', 'flops'}
  if not (
    lists
    and isinstance(found['sources'], list)
    and all(isinstance(s, dict) and 'digest' in s for s in found['sources'])
    and all(isinstance(s, dict) and keys <= s.keys() for s in found['stages'])
  ):
    raise UserError(f'{path} is no lineage')
  return found
