"""Dispatch algorithms side by side, as text for people."""

import textwrap
from collections.abc import Mapping
from typing import Any

from moe_jax.planning import dispatches, memory, report

_SIZES = ('balanced', 'held', 'worst')


def text(plan: Mapping[str, Any], buffers: bool = True) -> str:
  """Aligned tables of what `experiments.plan` found.

  Args:
    plan: its JSON object.
    buffers: also a line for each buffer of each algorithm.
  """
  mesh = ' '.join(f'{k}={v}' for k, v in plan['mesh'].items())
  devices = f'{plan["devices"]:,} device{"s" * (plan["devices"] > 1)}'
  blocks = [f'{devices}: {mesh}; planned for {_platform(plan)}']
  for name, stack in plan['stacks'].items():
    blocks += [_layer(name, stack), _summary(plan, stack)]
    if buffers:
      blocks += [_buffers(k, v) for k, v in stack['algorithms'].items()]
    why = f'Recommended for the {name}: {stack["recommended"]}.'
    blocks.append(textwrap.fill(f'{why} {stack["because"]}', 100))
  return '\n\n'.join(blocks)


def _platform(plan) -> str:
  if plan['platform'] == 'cpu':
    return 'CPU (blocked products; a ragged exchange gathers all rows)'
  return 'accelerators (--cpu for CPU)'


def _layer(name: str, stack) -> str:
  v = stack['layer']
  micro = v['micro_batches']
  micro = f' of each of {micro} micro-batches' if micro > 1 else ''
  return (
    f'{name}: {v["layers"]} sparse layer{"s" * (v["layers"] > 1)}, '
    f'E = {v["experts"]}, K = {v["choices"]:g}, D = {v["width"]:,}, '
    f'F = {v["hidden"]:,} on a device\n'
    f'a device has {v["groups"]:,} group{"s" * (v["groups"] > 1)} of '
    f'T = {v["tokens"]:,} tokens{micro}; an expert has C = {v["capacity"]:,} '
    'rows for each group'
  )


def _summary(plan, stack) -> str:
  found = stack['algorithms']
  own = stack['dispatch'].partition('(')[0]
  # The row of each figure, in the order of printing.
  size = lambda key, part: lambda f: report.binary(f[key][part])
  percent = lambda v: f'{100 * v:.3g} %' if v else '-'
  part = lambda key: lambda f: percent(f[key])
  again = plan['remat'] in ('full', 'dots')
  passes = f'forward{", again" * again} and backward'
  rows = [
    ('', *(f'{k}{" (config)" * (k == own)}' for k in dispatches.ALGORITHMS)),
    ('one layer, one device',),
    ('  rows held', lambda f: f'{f["rows"]["held"]:,}'),
    ('  peak, forward and backward', size('peak', 'held')),
    ('  peak if buffers fit balanced loads', size('peak', 'balanced')),
    ('  peak if no load may drop a token', size('peak', 'worst')),
    ('  FLOPs of dispatch / of experts', part('flops_of_dispatch')),
    (f'all layers, a step: {passes}',),
    ('  leaves a device, balanced loads', size('wire', 'leaving_per_device')),
    ('  leaves a device, any loads', size('wire', 'worst_per_device')),
    (f'{_source(plan, stack)}',),
    ('  dropped for capacity', lambda f: percent(stack['dropped'])),
    ('  rows computed that hold no token', part('empty')),
    ('  rows held that hold no token', part('unused')),
    ('  seated, but clipped by the receiver', part('clipped')),
  ]
  lines = []
  for label, *cells in rows:
    if cells and callable(cells[0]):
      cells = [cells[0](found[k]) for k in dispatches.ALGORITHMS]
    lines.append((label, *(cells or [''] * len(dispatches.ALGORITHMS))))
  return report.table(lines)


def _source(plan, stack) -> str:
  routing, busiest = plan['routing'], stack['busiest']
  most = f'busiest expert {busiest:.2f} x the mean'
  if 'loads' in routing:
    return f'simulated from recorded loads: {most}'
  return f'simulated, skew {routing["skew"]:g}: {most}'


def _buffers(name: str, figures) -> str:
  tables = {k: {b['name']: b for b in figures['buffers'][k]} for k in _SIZES}
  at = memory.PHASES.index
  names = sorted(
    tables['held'],
    key=lambda k: (at(tables['held'][k]['first']), -tables['held'][k]['bytes']),
  )
  rows = [(f'buffers of {name}', 'alive', *_HEAD)]
  for key in names:
    sizes = [tables[k].get(key) for k in _SIZES]
    first, last = (tables['held'][key][k] for k in ('first', 'last'))
    rows.append(
      (
        key,
        first if first == last else f'{first} .. {last}',
        *(f'{b["rows"]:,}' if b else '-' for b in sizes),
        *(report.binary(b['bytes']) if b else '-' for b in sizes),
      )
    )
  peaks = [report.binary(figures['peak'][k]) for k in _SIZES]
  rows.append(('peak', figures['peak_at'], '', '', '', *peaks))
  return report.table(rows, left=(0, 1))


_HEAD = (
  *('rows balanced', 'held', 'no drops'),
  *('bytes balanced', 'held', 'no drops'),
)
