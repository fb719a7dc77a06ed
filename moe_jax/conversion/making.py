"""Workdirs to a workdir, by a method: `experiments.convert --method`."""

import importlib
from collections.abc import Sequence
from typing import Any

import jax

from moe_jax import citations, registry
from moe_jax.conversion import folders, lineage, trees, workdirs, writing
from moe_jax.errors import UserError
from moe_jax.problems import base as problems

FAMILY = 'conversion.methods'


def make(
  spec: str,
  sources: Sequence[folders.Path],
  workdir: folders.Path,
  *,
  seed: int = 0,
  step: int | None = None,
) -> workdirs.Converted:
  """Writes the workdir of what a method makes of others; whole or not at all.

  Args:
    spec: call string of the method.
    sources: workdirs of runs.
    workdir: new or empty.
    seed: of what is drawn.
    step: of the checkpoints; None is each one's newest.

  Raises:
    ValueError: one line, nothing was written: runs that do not fit, or a method
      that needs what they have not.
  """
  writing.Replaced.check(workdir)
  method = registry.build(FAMILY, spec)
  least, most = method.sources
  if len(sources) < least or (most is not None and len(sources) > most):
    wanted = f'{least}' if least == most else f'{least} or more'
    raise UserError(f'{spec} is of {wanted} runs, not of {len(sources)}')
  models = [trees.read(w, step, method.optimizer) for w in sources]
  _check_tokenizers(sources, models)
  known: dict[Any, lineage.Lineage] = {}
  found = [lineage.of(w, step, m, known) for w, m in zip(sources, models)]
  if method.related:
    lineage.check_related(found)
  made = method(jax.random.key(seed), *models)
  fields, lines = _data(models)
  fields |= {
    'train.init_from': '',
    'train.init_dense': False,
    'train.teacher': '',
  }
  if made.moments is None:
    fields['train.trainable'] = 'all'
  made = made.replace(config=trees.with_fields(made.config, fields))
  told = lineage.told(spec, trees.digest(made), found)
  trees.write(workdir, made, told, like=sources[0])
  arrays = [v for leaves in (made.rest, *made.layers) for v in leaves.values()]
  return workdirs.Converted(
    registry.parse(spec)[0], len(arrays), sum(v.size for v in arrays), lines
  )


def _check_tokenizers(sources, models) -> None:
  """Raises ValueError where ids mean other things."""
  own = [
    problems.of(m.config).with_kept(str(w), m.config.train.init_from)
    for w, m in zip(sources, models)
  ]
  for workdir, theirs in zip(sources[1:], own[1:]):
    differs = own[0].differs(theirs)
    if differs:
      raise UserError(f'{workdir}: {differs}')


def _data(models: Sequence[trees.Model]) -> tuple[dict[str, Any], list[str]]:
  """The union of their domains, for who trains on; and what is not in it."""
  data = [m.config.data for m in models]
  fields, lines = {}, []
  domains = [d.domains for d in data]
  if all(domains):
    fields['data.domains'] = tuple(dict.fromkeys(sum(domains, ())))
  if len(set(domains)) > 1:
    fields['data.weights'] = ()
    fields.setdefault('data.domains', ())
  for name in ('name', 'dir'):
    if len({d[name] for d in data}) > 1:
      lines.append(f'data.{name} differs; the config has {data[0][name]!r}')
  return fields, lines


def markdown() -> str:
  """The table of methods in README.md, from what their files say."""
  rows = ['| method | what it is | of | arXiv |', '| --- | --- | --- | --- |']
  for name in registry.names(FAMILY):
    least, most = registry.method_class(FAMILY, name).sources
    module = importlib.import_module(f'moe_jax.{FAMILY}.{name}')
    text = module.__doc__ or ''
    first = ' '.join(text.partition('\n\n')[0].split()).rstrip('.')
    paper = (*(p.number for p in citations.cited(text)), '')[0]
    of = '1 run' if most == 1 else f'{least} run or more'
    link = f'[{name}](methods/{name}.py)'
    rows.append(f'| {link} | {first} | {of} | {paper} |')
  return '\n'.join(rows) + '\n'
