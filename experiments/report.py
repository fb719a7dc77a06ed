"""Draws the report of a run, or lays several runs side by side.

  python -m experiments.report --workdirs=runs/moe
  python -m experiments.report --workdirs=runs/moe,runs/dense --workdir=runs

Reads config.json, metrics.jsonl and summary.json of each workdir (a run that
goes on has no summary yet) and prints a table. One run gives report.html,
several give compare.html with the differences to the first: one page each, with
its figures inside, that opens without a network. The figures stand beside it,
too: figures/*.png.
"""

from absl import flags

from experiments import cli
from moe_jax.errors import UserError
from moe_jax.plots import records, report, tables

_WORKDIRS = flags.DEFINE_list(
  'workdirs',
  None,
  'Workdirs of the runs, separated by commas; others are compared to the '
  'first.',
  required=True,
)
_WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  'Where the page is written; made if missing. Default: the first workdir.',
)


def main(_: list[str]) -> None:
  """Prints the table and writes the page."""
  workdirs = [w for w in _WORKDIRS.value if w]
  if not workdirs:
    raise UserError("--workdirs is empty; expected 'runs/a' or 'runs/a,runs/b'")
  out = _WORKDIR.value or workdirs[0]
  runs = records.read_all(workdirs)
  if len(runs) == 1:
    path = report.write(workdirs[0], out)
    if runs[0].summary:
      print(tables.end_of_run(runs[0].summary, {'report': path}), end='')
    else:
      print(f'{tables.side_by_side(runs)}\n{path}')
  else:
    path = report.compare(workdirs, out)
    print(f'{tables.side_by_side(runs)}\n{path}')


if __name__ == '__main__':
  cli.run(main)
