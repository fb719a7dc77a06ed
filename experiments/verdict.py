"""Judges a study's claims by its results.

  python -m experiments.verdict --workdir=/tmp/moe_jax/capacity_factor
  python -m experiments.verdict --workdir=/tmp/moe_jax/capacity_factor \\
      --out=experiments/results/capacity_factor
  python -m experiments.verdict --workdir=experiments/results/capacity_factor

Reads results.jsonl of a sweep and the claims of the study file that it names,
where that is one of configs/ here; another, which would be run, --study names.
It prints the verdicts and writes claims.json, results.md and figures to the
workdir; --out copies these small files to where they are kept. A claim is
reproduced where the 95 % paired-t interval of its difference lies beyond the
smallest effect that counts, contradicted where it lies so the other way.

Before the runs, what a pilot says of how many seeds each claim needs, and which
claims cannot be tested here; --out is the workdir of the runs, whose verdicts
go by it:

  python -m experiments.verdict --workdir=/tmp/moe_jax/pilot --power \\
      --out=/tmp/moe_jax/capacity_factor
"""

import collections
import pathlib

from absl import flags

from experiments import cli
from moe_jax.errors import UserError

_WORKDIR = flags.DEFINE_string(
  'workdir', '', 'Of the sweep, or of kept results.'
)
_STUDY = flags.DEFINE_string(
  'study', '', 'Study file in place of the one that the results name.'
)
_POWER = flags.DEFINE_bool(
  'power', False, 'Seeds that each claim needs, by these results as a pilot.'
)
_OUT = flags.DEFINE_string('out', '', 'Where the small files are kept.')


def main(_: list[str]) -> None:
  """Prints the table of verdicts and writes the files."""
  from moe_jax.plots import tables
  from moe_jax.studies import pages, power, report, results, study as study_lib

  if not _WORKDIR.value:
    raise UserError('give --workdir, of a sweep or of kept results')
  rows = results.read(pathlib.Path(_WORKDIR.value) / results.FILE)
  spec, changed = report.source(rows, _WORKDIR.value)
  if _STUDY.value:
    spec = f'{_STUDY.value}:{spec.rpartition(":")[2]}'
  else:
    report.check_own(spec)
  study = study_lib.load(spec, flags=changed)
  if _POWER.value:
    asked = power.of(study, rows)
    print(tables.text(power.HEADER, power.cells(asked)), end='\n\n')
    if count := power.enough(asked):
      print(f'{count} seeds are enough for all that can be tested')
    if _OUT.value:
      print(power.keep(_OUT.value, power.record(study, asked, results.today())))
    return
  found = report.write(study, rows, _WORKDIR.value)
  print(tables.text(pages.HEADER, pages.summary(found)), end='\n\n')
  counts = collections.Counter(v.outcome for v in found)
  print(', '.join(f'{counts[o]} {o}' for o in pages.OUTCOMES if counts[o]))
  where = _WORKDIR.value
  if _OUT.value:
    report.land(study, where, _OUT.value)
    where = _OUT.value
  print(pathlib.Path(where) / report.PAGE)


if __name__ == '__main__':
  cli.run(main)
