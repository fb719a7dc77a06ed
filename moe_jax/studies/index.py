"""All kept claims in one table: what the README shows."""

import collections
import json
import os
import pathlib
from typing import Any

from moe_jax.studies import report

HEADER = ('claim', 'source', 'difference here, 95 %', 'counts', 'verdict')


def read(root: str | os.PathLike) -> list[dict[str, Any]]:
  """The kept claims.json of every study under `root`, by name.

  Raises:
    ValueError: there is none.
  """
  paths = sorted(pathlib.Path(root).glob(f'*/{report.CLAIMS}'))
  if not paths:
    raise ValueError(f'{root} holds no */{report.CLAIMS}')
  return [json.loads(p.read_text()) | {'dir': str(p.parent)} for p in paths]


def markdown(studies: list[dict[str, Any]]) -> str:
  """A table of verdicts by study, then one of all claims."""
  return '\n\n'.join([_studies(studies), _claims(studies)]) + '\n'


def _studies(studies) -> str:
  rows, total = [], collections.Counter()
  for s in studies:
    counts = collections.Counter(c['verdict'] for c in s['claims'])
    total += counts
    link = f'[`{s["study"]}`]({s["dir"]}/{report.PAGE})'
    rows.append((link, s['size'], *_counts(counts)))
  rows.append(('all', '', *_counts(total)))
  header = ('study', 'size', 'claims', 'about quality', *report.OUTCOMES)
  quality = [sum(c['kind'] == 'quality' for c in s['claims']) for s in studies]
  quality.append(sum(quality))
  rows = [(*r[:3], str(q), *r[3:]) for r, q in zip(rows, quality)]
  return report.table(header, rows)


def _counts(counts) -> list[str]:
  return [str(sum(counts.values())), *(str(counts[o]) for o in report.OUTCOMES)]


def _claims(studies) -> str:
  rows = []
  for s in studies:
    for c in s['claims']:
      here = report.difference(c['difference'], c['low'], c['high'])
      rows.append(
        (
          c['sentence'],
          f'{c["paper"]}, {c["table"]}; [`{s["study"]}`]'
          f'({s["dir"]}/{report.PAGE})',
          here,
          report.threshold(c['direction'], c['smallest_effect']),
          c['verdict'],
        )
      )
  return report.table(HEADER, rows)
