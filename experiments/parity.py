"""Runs one MoE layer in every variant on every mesh, and compares the numbers.

  python -m experiments.parity
  python -m experiments.parity --only=einsum/data=2,expert=4 --all
  python -m experiments.parity --dispatch='my_lab.dispatch.Mine(rows=2)' \\
      --allow_modules=my_lab

Dispatches, grouped matmuls, all meshes of at most 8 devices (simulated on the
CPU), routers and capacities, each against loops in NumPy and against `dense` on
one device, gradients too (moe_jax/parity/check.py). The default is a
selection in which every pair of factor values occurs, every dispatch on every
mesh among them: 5 to 8 minutes on 2 cores. --all runs the product, for some
hours. The exit code is 1 where a cell fails. --workdir receives parity.json and
parity.md.
"""

import json
import pathlib
import sys
import traceback

from absl import flags

from experiments import cli, modules
from moe_jax.errors import UserError

_ALL = flags.DEFINE_bool('all', False, 'The whole product of the factors.')
_CELLS = flags.DEFINE_integer(
  'cells', None, 'At most this many cells, the first.', lower_bound=1
)
_ONLY = flags.DEFINE_string(
  'only', '', 'Cells whose name, as the results list it, contains this.'
)
_DISPATCH = flags.DEFINE_multi_string(
  'dispatch', [], 'This dispatch in place of the family; may be repeated.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Where to write; made if missing. Default: print only.'
)
_MARKDOWN = flags.DEFINE_bool('markdown', False, 'Print Markdown tables.')
flags.adopt_module_key_flags(modules)


def main(_: list[str]) -> int:
  """Prints the tables; 1 where a cell failed."""
  modules.allow()
  import jax
  import tqdm

  from moe_jax.parallel import distributed
  from moe_jax.parity import check as parity, grid, report as parity_report
  from moe_jax.plots import tables

  jax.config.update('jax_platforms', 'cpu')
  distributed.simulate(grid.DEVICES)
  product = grid.product(_DISPATCH.value)
  cells = product if _ALL.value else grid.select(product)
  chosen = [c for c in cells if _ONLY.value in c.name][: _CELLS.value]
  if not chosen:
    raise UserError(
      f'--only={_ONLY.value!r} is in the name of none of {len(cells)} cells, '
      f'such as {cells[0].name!r}; --all chooses from {len(product)}'
    )
  workdir = pathlib.Path(_WORKDIR.value) if _WORKDIR.value else None
  if workdir and workdir.exists() and not workdir.is_dir():
    raise UserError(f'--workdir={workdir} is a file; a folder is wanted')
  if workdir:
    workdir.mkdir(parents=True, exist_ok=True)

  every = 0.1 if sys.stderr.isatty() else 10  # seconds; a log gets few lines
  bar = tqdm.tqdm(
    parity.run(chosen), total=len(chosen), unit='cell', mininterval=every
  )
  results = []
  for result in bar:
    results.append(result)
    failed = sum(not r.ok for r in results)
    error = max(r.error for r in results)
    bar.set_postfix(failed=failed, worst=f'{error:.0e}', refresh=False)

  shown, written = [], [parity_report.coverage(results, product)]
  show = tables.markdown if _MARKDOWN.value else tables.text
  for table in (parity_report.table(results), parity_report.worst(results)):
    shown.append(show(*table))
    written.append(tables.markdown(*table))
  failures = parity_report.failures(results, _DISPATCH.value)
  print('\n\n'.join([written[0], *shown, *failures]))
  if len(results) == 1 and results[0].raised:
    traceback.print_exception(results[0].raised)
  if workdir:
    record = parity_report.record(results, product)
    (workdir / 'parity.json').write_text(json.dumps(record, indent=1))
    text = '\n\n'.join([*written, *failures])
    (workdir / 'parity.md').write_text(f'{text}\n')
  return 1 if failures else 0


if __name__ == '__main__':
  cli.run(main)
