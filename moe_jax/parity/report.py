"""The results of `parity` as a record, a table and a list of failures."""

import dataclasses
import math
import shlex
from collections.abc import Sequence
from typing import Any

import jax

from moe_jax.parallel.axes import MESH_AXES
from moe_jax.parity import check as parity, covering, grid

COMMAND = 'python -m experiments.parity'
ROWS = ('variant', 'router', 'capacity')


def record(
  results: Sequence[parity.Result], product: Sequence[grid.Cell]
) -> dict[str, Any]:
  """What parity.json holds; an error of a cell that did not run is None.

  Args:
    results: of the cells that were run.
    product: all cells there are.
  """
  finite = lambda v: v if math.isfinite(v) else None
  factors = [f.name for f in dataclasses.fields(grid.Cell)]
  distinct = lambda f: list(dict.fromkeys(getattr(c, f) for c in product))
  sizes = ('B', 'L', 'D', 'E', 'F', 'T')
  return {
    'cells': len(results),
    'failed': sum(not r.ok for r in results),
    'max_error': finite(max(r.error for r in results)),
    'tolerance': parity.TOLERANCE,
    'seconds': round(sum(r.seconds for r in results), 1),
    'jax': jax.__version__,
    'options': grid.OPTIONS,
    'sizes': {k: getattr(grid, k) for k in sizes},
    'grid': {f: distinct(f) for f in factors} | {'cells': len(product)},
    'results': [
      {
        'name': r.cell.name,
        **dataclasses.asdict(r.cell),
        'error': finite(r.error),
        'leaf': r.worst,
        'failed': list(r.failed),
        'raised': r.message,
        'seconds': round(r.seconds, 2),
      }
      for r in results
    ],
  }


def table(
  results: Sequence[parity.Result],
) -> tuple[list[str], list[list[str]]]:
  """Header and rows: the largest error by factor value and by mesh axis.

  A column holds the cells whose mesh has that axis, so that a cell may stand in
  several; inf is a cell that did not run or a number that is none.
  """
  columns = {'one device': lambda mesh: mesh == 'one'}
  columns |= {a: lambda mesh, a=a: f'{a}=' in mesh for a in MESH_AXES}
  columns |= {'all': lambda mesh: True}
  groups = [lambda c, f=f: getattr(c, f) for f in ROWS]
  rows = []
  for value in (*groups, lambda c: 'all'):
    for v in sorted({value(r.cell) for r in results}):
      mine = [r for r in results if value(r.cell) == v]
      row = [v, str(len(mine)), str(sum(not r.ok for r in mine))]
      for has in columns.values():
        errors = [r.error for r in mine if has(r.cell.mesh)]
        row.append(f'{max(errors):.1e}' if errors else '-')
      rows.append(row)
  return ['largest error', 'cells', 'failed', *columns], rows


def worst(
  results: Sequence[parity.Result], count: int = 5
) -> tuple[list[str], list[list[str]]]:
  """Header and rows: the cells with the largest errors, and where."""
  ranked = sorted(results, key=lambda r: -r.error)[:count]
  rows = []
  for r in ranked:
    c = r.cell
    leaf = r.worst or r.message[:40]
    error = f'{r.error:.1e}'
    rows.append([error, leaf, c.variant, c.mesh, c.router, c.capacity])
  return ['error', 'leaf', 'dispatch', 'mesh', 'router', 'capacity'], rows


def coverage(
  results: Sequence[parity.Result], product: Sequence[grid.Cell]
) -> str:
  """How much of the product was run."""
  pairs = lambda cells: {
    p for c in cells for p in covering.pairs(dataclasses.astuple(c))
  }
  run, every = pairs(r.cell for r in results), pairs(product)
  return (
    f'{len(results):,} of {len(product):,} cells, {len(run):,} of '
    f'{len(every):,} pairs of factor values'
  )


def failures(
  results: Sequence[parity.Result], dispatches: Sequence[str] = ()
) -> list[str]:
  """A paragraph for each cell that failed: leaves, errors, how to rerun it.

  Args:
    results: of any cells.
    dispatches: that were asked for in place of the family.
  """
  given = ''.join(f' --dispatch={shlex.quote(d)}' for d in dispatches)
  found = []
  for r in results:
    if r.ok:
      continue
    lines = [f'FAILED {r.cell.name}']
    if r.raised:
      lines.append(f'  {r.message[:300]}')
    lines += [
      f'  {leaf}: off by {r.errors[leaf]:.1e} of its largest entry'
      for leaf in r.failed[:4]
    ]
    if len(r.failed) > 4:
      lines.append(f'  and {len(r.failed) - 4} more leaves')
    lines.append(f'  {COMMAND} --all --only={shlex.quote(r.cell.name)}{given}')
    found.append('\n'.join(lines))
  return found
