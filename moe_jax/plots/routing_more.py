"""Further figures of a routing page: of what is no number by layer.

Each function takes metrics and a record's schema and gives what there is to
draw; what is absent, or of another shape, is left out.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from matplotlib import figure as mpl_figure

from moe_jax.analysis import records
from moe_jax.plots import routing_figures as figures

Metrics = Mapping[str, Any]
Drawn = tuple[str, mpl_figure.Figure, str]  # name, figure, caption


def array(metrics: Metrics, key: str, ndim: int) -> np.ndarray | None:
  """Numbers of `ndim` axes with something finite; None where there are none."""
  try:
    found = np.asarray(metrics.get(key), np.float64)
  except (TypeError, ValueError):
    return None
  return found if found.ndim == ndim and np.isfinite(found).any() else None


def _mean(array: np.ndarray) -> np.ndarray:
  """Over layers, as far as they have a number."""
  known = np.isfinite(array)
  count = known.sum(0)
  total = np.where(known, array, 0).sum(0)
  return np.where(count, total / np.maximum(count, 1), np.nan)


def _measured(
  metrics: Metrics, stem: str, names: list[str] | None
) -> dict[str, np.ndarray] | None:
  """Means over layers, of the number and by chance, one a name."""
  value = array(metrics, f'{stem}value', 2)
  if value is None or not names or value.shape[1] != len(names):
    return None
  found = {'measured': _mean(value)}
  null = array(metrics, f'{stem}null', 2)
  if null is not None and null.shape == value.shape:
    found['by chance'] = _mean(null)
  return found


def _bins(metrics: Metrics, key: str) -> list[str] | None:
  """Bins by where they begin."""
  edges = array(metrics, key, 1)
  if edges is None:
    return None
  return [f'{v:g}' for v in edges]


def _names(metrics: Metrics, key: str) -> list[str]:
  found = metrics.get(key)
  return [words(str(v)) for v in found] if isinstance(found, list) else []


def kinds(metrics: Metrics, schema: records.Schema) -> Iterator[Drawn]:
  classes = _names(metrics, 'token_classes/classes')
  found = _measured(metrics, 'token_classes/', classes)
  fig = figures.dots(classes, found, 'distance from the load of all tokens')
  if fig:
    yield (
      'kinds',
      fig,
      'Mean over layers. Look for kinds well to the right of chance, which '
      'gives them to other ids as frequent: they have experts of their own.',
    )


def together(metrics: Metrics, schema: records.Schema) -> Iterator[Drawn]:
  matrix = array(metrics, 'coactivation/matrix', 3)
  if matrix is not None:
    yield (
      'together',
      figures.heat(matrix, schema, 'share of the row’s tokens'),
      'Tokens of an expert (row) that go to another one, too (column). Look '
      'for dark squares: experts that work together.',
    )


def lost(metrics: Metrics, schema: records.Schema) -> Iterator[Drawn]:
  drawn = []
  bins = _bins(metrics, 'drops/edges')
  found = _measured(metrics, 'drops/by_position_', bins)
  if found and np.nanmax(found['measured']) > 0:
    label = 'position, from'
    drawn.append(figures.Steps(bins, found, label, 'dropped, %'))
  factors = _bins(metrics, 'drops_at/factors')
  found = _measured(metrics, 'drops_at/', factors)
  if found:
    label = 'would be dropped, %'
    drawn.append(figures.Steps(factors, found, 'capacity factor', label))
  if drawn:
    yield (
      'places',
      figures.steps(drawn),
      'Look for a rise to the right: whoever is seated last is dropped. By '
      'chance: any place of the same documents; tokens in another order.',
    )
  domains = list(schema.domains)
  found = _measured(metrics, 'drops/by_domain_', domains)
  if found and len(domains) > 1 and np.nanmax(found['measured']) > 0:
    yield (
      'domains',
      figures.dots(domains, found, 'dropped, %'),
      'Text unlike the training’s is dropped more. By chance: documents dealt '
      'to the domains at random.',
    )


def used(metrics: Metrics, schema: records.Schema) -> Iterator[Drawn]:
  # Where every token uses as many experts there is nothing to see.
  histogram = array(metrics, 'adaptive/histogram', 2)
  if histogram is None or histogram.max(-1).min() > 0.95:
    return
  drawn = []
  for kind, label in _USED.items():
    bins = _bins(metrics, f'adaptive/{kind}')
    found = _measured(metrics, f'adaptive/by_{_ONE[kind]}_', bins)
    if found:
      drawn.append(figures.Steps(bins, found, label, 'experts of a token'))
  if drawn:
    yield (
      'used',
      figures.steps(drawn),
      'Experts that computed for a token. Look for a rise: later tokens, or '
      'harder ones, get more.',
    )
  classes = _names(metrics, 'adaptive/classes')
  found = _measured(metrics, 'adaptive/by_class_', classes)
  fig = figures.dots(classes, found, 'experts of a token')
  if fig:
    yield 'used-kinds', fig, 'And by kinds: look whether names cost more.'


_ONE = {'positions': 'position', 'losses': 'loss'}
_USED = {
  'positions': 'position, from',
  'losses': 'loss of the next token in nats, from',
}


def settled(metrics: Metrics, schema: records.Schema) -> Iterator[Drawn]:
  """Of every checkpoint that was looked at; before all, of no training."""
  steps = sorted(
    {
      int(found[1])
      for k in metrics
      if (found := re.match(r'saturation_(\d+)/', k))
    }
  )
  drawn = []
  for name, label in (('top_1', 'first choice'), ('top_k', 'choices')):
    lines = _kept(metrics, name, ['untrained', *steps], schema)
    if lines:
      at = [f'{s:,}' if isinstance(s, int) else s for s in lines.pop('at')]
      label = f'{label} kept to the end, %'
      drawn.append(figures.Steps(at, lines, 'checkpoint', label))
  if drawn:
    yield (
      'settled',
      figures.steps(drawn),
      'Look how early a layer does what it does at the end, and how much of '
      'that an untrained router does, too.',
    )


def _kept(
  metrics: Metrics, name: str, steps: list, schema: records.Schema
) -> dict[str, Any]:
  """'at', the steps that there are, and their values by layer and chance."""
  at, values, nulls = [], [], []
  for step in steps:
    stem = f'saturation_{step}/{name}_'
    value, null = (array(metrics, f'{stem}{k}', 1) for k in ('value', 'null'))
    if value is not None and null is not None:
      if value.shape == null.shape == (len(schema.layers),):
        at, values = [*at, step], [*values, value]
        nulls.append(_mean(null))
  if len(at) < 2:
    return {}
  some = figures.some(len(schema.layers))
  lines = {f'layer {schema.layers[m]}': np.array(values)[:, m] for m in some}
  return {'at': at, **lines, 'by chance': np.array(nulls)}


def gone(metrics: Metrics, schema: records.Schema) -> Iterator[Drawn]:
  domains = metrics.get('importance/domains')
  out = _own(metrics, 'importance', 'removed', schema)
  if out is not None and isinstance(domains, list):
    # The last is of all domains.
    out = out[..., : len(domains)].swapaxes(1, 2)
    yield (
      'gone',
      figures.cost(out, domains, schema),
      'Look for orange: what a domain loses where that expert is out, in nats '
      'a token. Purple: it would be better off.',
    )
  alike = _own(metrics, 'outputs', 'cka', schema)
  if alike is not None:
    yield (
      'alike',
      figures.heat(alike, schema, 'CKA of their outputs'),
      'Look for dark squares: experts that compute alike, of which one may do.',
    )


def _own(
  metrics: Metrics, metric: str, name: str, schema: records.Schema
) -> np.ndarray | None:
  """[M, E, ...] of the schema's layers, of a metric of all stacks'."""
  found, layers = array(metrics, f'{metric}/{name}', 3), schema.names
  there = metrics.get(f'{metric}/layers')
  if found is None or not isinstance(there, list) or len(there) != len(found):
    return None
  if not set(layers) <= set(there) or found.shape[1] < max(schema.experts):
    return None
  return found[[there.index(n) for n in layers]]


def words(key: str) -> str:
  """'committee/size_' -> 'Committee: size'."""
  of, _, name = key.replace('_', ' ').partition('/')
  name = name.strip()
  return of.strip().capitalize() + (f': {name}' if name else '')
