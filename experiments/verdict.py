"""Judges a study's claims by its results.

  python -m experiments.verdict --workdir=/tmp/moe_jax/capacity_factor
  python -m experiments.verdict --workdir=/tmp/moe_jax/capacity_factor \\
      --out=experiments/results/capacity_factor
  python -m experiments.verdict --workdir=experiments/results/capacity_factor

Reads results.jsonl of a sweep and the claims of the study file that it names,
prints the verdicts and writes claims.json, results.md and figures to the
workdir; --out copies these small files to where they are kept. A claim is
reproduced where the 95 % paired-t interval of its difference lies beyond the
smallest effect that counts, contradicted where it lies so the other way.
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
_OUT = flags.DEFINE_string('out', '', 'Where the small files are kept.')


def main(_: list[str]) -> None:
  """Prints the table of verdicts and writes the files."""
  from moe_jax.plots import tables
  from moe_jax.studies import report, results, study as study_lib

  if not _WORKDIR.value:
    raise UserError('give --workdir, of a sweep or of kept results')
  rows = results.read(pathlib.Path(_WORKDIR.value) / results.FILE)
  spec, changed = report.source(rows, _WORKDIR.value)
  if _STUDY.value:
    spec = f'{_STUDY.value}:{spec.rpartition(":")[2]}'
  study = study_lib.load(spec, flags=changed)
  found = report.write(study, rows, _WORKDIR.value)
  header = ('claim', 'is', 'by', 'difference', '95 % interval', 'seeds', '')
  print(tables.text(header, report.summary(found)), end='\n\n')
  counts = collections.Counter(v.outcome for v in found)
  print(', '.join(f'{counts[o]} {o}' for o in report.OUTCOMES if counts[o]))
  where = _WORKDIR.value
  if _OUT.value:
    report.land(study, where, _OUT.value)
    where = _OUT.value
  print(pathlib.Path(where) / report.PAGE)


if __name__ == '__main__':
  cli.run(main)
