"""Verdicts in words: results.md of a study, and tables in the terminal."""

import collections
import math
from collections.abc import Sequence

import numpy as np

from moe_jax.studies import (
  derived,
  fairness,
  lawful,
  power,
  results,
  study as study_lib,
  verdicts,
)

# In the order of a table: what was found first.
OUTCOMES = (
  verdicts.REPRODUCED,
  verdicts.CONTRADICTED,
  verdicts.INCONCLUSIVE,
  verdicts.UNTESTABLE,
  verdicts.NOT_RUN,
)


_FAIR = (
  'Tokens and FLOPs are of all stages, each counted once; latency is seconds '
  'of an evaluation, on a machine that did other things, too. Where what is '
  f'declared to be matched is off by more than {fairness.MOST:.0%} no winner '
  'is named.'
)

# Of `summary`; '0' is where the interval lies to it.
HEADER = (
  *('claim', 'difference', '95 % interval', '0', 'counts', 'seeds'),
  'verdict',
)


def page(
  study: study_lib.Study,
  rows: Sequence[results.Row],
  found: Sequence[verdicts.Verdict],
  fitted: Sequence[lawful.Found] = (),
  folder: str = '',
) -> str:
  """results.md: claims, laws, arms, figures and how it was run.

  Args:
    study: whose claims.
    rows: of results.jsonl.
    found: the verdicts.
    fitted: its laws.
    folder: that it is kept in; '' is one of the study's name.
  """
  counts = collections.Counter(v.outcome for v in found)
  told = ', '.join(f'{counts[o]} {o}' for o in OUTCOMES if counts[o])
  parts = [
    f'# {study.title}',
    f'{len(found)} claims at size `{study.size}`: {told}. A difference is of '
    'pairs of runs with the same seed, and so the same data in the same order '
    'but where arms differ in just that, with its 95 % paired t interval and '
    'where that is of 0; *reproduced* needs all of it beyond the smallest '
    'effect that counts, which was fixed before any run. In brackets after '
    '*inconclusive*, the seeds that would decide it four times in five, if '
    'mean and spread stayed as they are.' + _apart(found),
    '## Claims',
    table(
      (
        *('claim', 'paper', 'published', 'here', '0', 'counts', 'seeds'),
        'verdict',
      ),
      [_claim_cells(v) for v in found],
    ),
  ]
  if study.notes:
    parts.append('## Notes')
    parts += [f'- `{name}`: {text}' for name, text in study.notes.items()]
  beside = [v for v in found if v.beside]
  if beside:
    parts += ['## What was matched', _FAIR]
  for v in beside:
    table_of = table(v.beside.header, v.beside.cells())
    parts.append(f'`{v.claim.name}`:\n\n{table_of}')
  for law in fitted:
    text, cells = lawful.told(law)
    parts += [f'## {law.spec["title"]}', text]
    if 'file' in law.spec:
      parts.append(f'![{law.spec["title"]}]({law.spec["file"]})')
    parts.append(table(('parameter', 'value', '95 % interval'), cells))
  parts += ['## Arms', _arms(study, rows)]
  for spec in study.figures:
    parts.append(f'![{spec["title"]}]({spec["file"]})')
  parts += ['## How it was run', _how(study, rows, folder or study.name)]
  return '\n\n'.join(parts) + '\n'


def _claim_cells(v: verdicts.Verdict) -> list[str]:
  c = v.claim
  published = '; '.join(f'{k}: {x:g}' for k, x in c.published.items())
  return [
    f'{c.sentence} (`{c.arms[0]}` against `{c.arms[1]}`, '
    f'{" and ".join(f"`{m}`" for m in dict.fromkeys(c.metrics))}'
    + (f'; declared {c.added})' if c.added else ')'),
    f'{c.paper}, {c.table}',
    published or '-',
    difference(v.difference, v.low, v.high),
    v.against_0 or '-',
    threshold(c.direction, c.smallest_effect),
    _seeds(v),
    f'**{v.outcome}**' + _why(v),
  ]


def _apart(found) -> str:
  """What the page has to say where runs begin with the same model."""
  v = next((v for v in found if v.units not in (0, v.pairs)), None)
  if v is None:
    return ''
  if v.units == 1:
    return (
      f' `{v.pairs} of 1` are {v.pairs} runs of one pre-trained model: what is '
      'said is of that model alone.'
    )
  return (
    ' Runs that begin with the same pre-trained model count as one, their '
    f'mean: `{_seeds(v)}` are {v.pairs} runs of {v.units} models, and models '
    'are what would decide.'
  )


def _seeds(v: verdicts.Verdict) -> str:
  same = v.units in (0, v.pairs)
  return str(v.pairs) if same else f'{v.pairs} of {v.units}'


def _why(v: verdicts.Verdict) -> str:
  if v.reason or v.outcome != verdicts.INCONCLUSIVE:
    return f': {v.reason}' if v.reason else ''
  interval = v.difference, v.low, v.high
  c = v.claim
  count = power.afterwards(c.direction, c.smallest_effect, interval, v.units)
  return f' ({would_take(count, v.units != v.pairs)})' if count else ''


def would_take(count: int, models: bool) -> str:
  """'11', '> 20' or '4 models', that would decide: of `power.afterwards`."""
  told = f'> {power.MOST}' if count > power.MOST else str(count)
  return told + (' models' if models else '')


def difference(mean: float | None, low, high) -> str:
  """'+0.01 (+0.005 to +0.015)'; '-' where there is none."""
  if mean is None or math.isnan(mean):
    return '-'
  return f'{mean:+.4g} ({low:+.4g} to {high:+.4g})'


def threshold(direction: str, smallest: float) -> str:
  """What the whole interval must be: '< -0.01', '> 0.01', 'within ±0.01'."""
  sign = {'lower': '< -', 'higher': '> ', 'equal': 'within ±'}[direction]
  return f'{sign}{smallest:g}'


def _arms(study, rows) -> str:
  header = ['arm', 'seeds', *(label for _, label, _ in study.columns)]
  cells = []
  states = collections.Counter(
    (name, r['status']) for (name, _), r in results.latest(rows).items()
  )
  ran = {name for name, _ in states}
  # Those that came after the runs have none.
  for arm in (a for a in study.arms if a.name in ran):
    done = states[arm.name, results.DONE]
    notes = [
      f'{states[arm.name, s]} {s}'
      for s in (results.DIVERGED, results.FAILED)
      if states[arm.name, s]
    ]
    line = [f'`{arm.name}`', ', '.join([str(done), *notes])]
    for metric, _, form in study.columns:
      values = list(derived.values(metric, arm.name, rows).values())
      least = derived.bounds(metric, arm.name, rows)
      line.append(_spread(values, form, bool(least)))
    cells.append(line)
  return 'Mean ± standard deviation over runs.\n\n' + table(header, cells)


def _spread(values: Sequence[float], form: str, least=False) -> str:
  if not values:
    return '-'
  mean = format(float(np.mean(values)), form)
  if least:
    return f'≥ {mean}'
  if len(values) == 1:
    return mean
  return f'{mean} ± {format(float(np.std(values, ddof=1)), form)}'


def _how(study, rows, folder) -> str:
  done = [r for r in results.latest(rows).values() if r['status'] == 'done']
  flags = ' '.join(
    f'--config.{k}={v}' for k, v in results.placeholders(study.flags).items()
  )
  spec = f'{study.path}:{study.size}'
  lines = [
    '```sh',
    f'python -m experiments.sweep --config={spec} {flags}'.rstrip()
    + f' --workdir=/tmp/moe_jax/{study.name}',
    f'python -m experiments.verdict --workdir=experiments/results/{folder}',
    '```',
    '',
  ]
  each = lambda f: ', '.join(sorted({str(f(r)) for r in done})) or '-'
  total = sum(r['seconds'] for r in done)
  lines += [
    f'- runs: {len(done)}, {total / 60:.0f} minutes in all',
    f'- seeds: {each(lambda r: r["seed"])}',
    f'- commit: {each(lambda r: r["commit"])}',
    f'- date: {each(lambda r: r["date"])}',
    f'- machine: {each(_machine)}',
    f'- data: {each(lambda r: r.get("data", "-"))}',
  ]
  return '\n'.join(lines)


def _machine(row) -> str:
  m = row['machine']
  versions = ' '.join(
    f'{k} {m["versions"][k]}' for k in ('jax', 'flax') if k in m['versions']
  )
  return f'{m["devices"]} x {m["device"]} ({m["threads"]} threads), {versions}'


def table(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
  """In Markdown."""
  line = lambda c: '| ' + ' | '.join(v.replace('|', r'\|') for v in c) + ' |'
  return '\n'.join(
    [line(header), line(['---'] * len(header)), *map(line, cells)]
  )


def summary(found: Sequence[verdicts.Verdict]) -> list[tuple[str, ...]]:
  """Cells for the terminal, a row a claim, under HEADER."""
  out = []
  for v in found:
    known = not math.isnan(v.difference)
    out.append(
      (
        v.claim.name,
        f'{v.difference:+.4g}' if known else '-',
        f'{v.low:+.4g} to {v.high:+.4g}' if known else '-',
        v.against_0 or '-',
        threshold(v.claim.direction, v.claim.smallest_effect),
        _seeds(v),
        v.outcome + _why(v),
      )
    )
  return out
