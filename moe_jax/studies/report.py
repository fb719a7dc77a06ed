"""Verdicts written down: claims.json, results.md and figures."""

import collections
import dataclasses
import json
import math
import os
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np

from moe_jax.errors import UserError
from moe_jax.plots import ablations, style
from moe_jax.runs import writers
from moe_jax.studies import (
  fairness,
  lawful,
  power,
  results,
  study as study_lib,
  verdicts,
)

CLAIMS, PAGE = 'claims.json', 'results.md'
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


def write(
  study: study_lib.Study, rows: Sequence[results.Row], out: str | os.PathLike
) -> list[verdicts.Verdict]:
  """Judges all claims and writes claims.json, results.md and the figures.

  Args:
    study: whose claims.
    rows: of results.jsonl.
    out: a directory, made if missing.

  Returns:
    The verdicts, in the order of the claims.
  """
  out = pathlib.Path(out)
  out.mkdir(parents=True, exist_ok=True)
  untestable = decided(out, rows)
  # A claim that came after the runs says nothing of them.
  last = max((r['date'] for r in rows), default='')
  asked = [c for c in study.claims if not last or c.added <= last]
  found = [verdicts.judge(c, rows, untestable) for c in asked]
  writers.write_json(
    out / CLAIMS,
    {
      'study': study.name,
      'size': study.size,
      'claims': [_record(v, study) for v in found],
    },
  )
  fitted = [v for v in (lawful.find(s, rows) for s in study.laws) if v]
  if fitted:
    writers.write_json(out / lawful.FILE, list(map(lawful.record, fitted)))
  for law in fitted:
    if 'file' in law.spec:
      style.png(lawful.draw(law), str(out / law.spec['file']))
  (out / PAGE).write_text(page(study, rows, found, fitted))
  for spec in study.figures:
    fig = ablations.draw(
      spec,
      lambda metric, arm: _point(metric, arm, rows),
      lambda arm: _curve(arm, rows),
    )
    style.png(fig, str(out / spec['file']))
  return found


def decided(
  workdir: str | os.PathLike, rows: Sequence[results.Row]
) -> dict[str, str]:
  """{claim: why} of what power.json of a workdir calls not testable.

  Raises:
    ValueError: it is younger than the runs.
  """
  kept = power.read(workdir)
  if not kept:
    return {}
  path = pathlib.Path(workdir) / power.FILE
  arms = [r['date'] for r in rows if r['stage'] == 'arm']
  if arms and kept['date'] > min(arms):
    raise UserError(
      f'{path} is of {kept["date"]}, the first run of {min(arms)}: what can be '
      'tested is decided before the arms run'
    )
  return power.untestable(kept)


def land(
  study: study_lib.Study, workdir: str | os.PathLike, out: str | os.PathLike
) -> None:
  """Copies what `write` left to a directory for keeping.

  Of each row what `results.for_keeping` leaves.
  """
  source, target = pathlib.Path(workdir), pathlib.Path(out)
  if source.resolve() == target.resolve():
    return
  target.mkdir(parents=True, exist_ok=True)
  laws = [spec['file'] for spec in study.laws if 'file' in spec]
  for name in (CLAIMS, PAGE, *(f['file'] for f in study.figures)):
    shutil.copyfile(source / name, target / name)
  for name in (power.FILE, lawful.FILE, *laws):  # where there are such
    if (source / name).exists():
      shutil.copyfile(source / name, target / name)
  rows = results.read(source / results.FILE)
  kept = [results.for_keeping(r, study) for r in rows]
  lines = [json.dumps(r, allow_nan=False) + '\n' for r in kept]
  (target / results.FILE).write_text(''.join(lines))


def _record(v: verdicts.Verdict, study: study_lib.Study) -> dict[str, Any]:
  declared = {
    k: value
    for k, value in dataclasses.asdict(v.claim).items()
    if k not in ('matched', 'varied') or value
  }
  beside = {'fairness': v.beside.record()} if v.beside else {}
  return (
    declared
    | beside
    | {
      'verdict': v.outcome,
      'pairs': v.pairs,
      'values': v.values,
      'difference': v.difference,
      'low': v.low,
      'high': v.high,
      'against_0': v.against_0,
      'reason': v.reason,
      'note': study.notes.get(v.claim.name, ''),
    }
  )


def _point(metric, arm, rows) -> ablations.Point | None:
  found = verdicts.values(metric, arm, rows)
  return verdicts.interval(list(found.values())) if found else None


def _curve(arm, rows) -> ablations.Curve | None:
  curves = [
    r['curve']
    for (name, _), r in results.latest(rows).items()
    if name == arm and 'curve' in r
  ]
  if not curves:
    return None
  return curves[0]['step'], np.mean([c['loss'] for c in curves], 0)


def page(
  study: study_lib.Study,
  rows: Sequence[results.Row],
  found: Sequence[verdicts.Verdict],
  fitted: Sequence[lawful.Found] = (),
) -> str:
  """results.md: claims, laws, arms, figures and how it was run."""
  counts = collections.Counter(v.outcome for v in found)
  told = ', '.join(f'{counts[o]} {o}' for o in OUTCOMES if counts[o])
  parts = [
    f'# {study.title}',
    f'{len(found)} claims at size `{study.size}`: {told}. A difference is of '
    'pairs of runs with the same seed, and so the same data in the same order '
    'but where arms differ in just that, with its 95 % paired t interval and '
    'where that is of 0; *reproduced* needs all of it beyond the smallest '
    'effect that counts, which was fixed before any run.',
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
  parts += ['## How it was run', _how(study, rows)]
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
    str(v.pairs),
    f'**{v.outcome}**' + (f': {v.reason}' if v.reason else ''),
  ]


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
  for arm in study.arms:
    done = states[arm.name, results.DONE]
    notes = [
      f'{states[arm.name, s]} {s}'
      for s in (results.DIVERGED, results.FAILED)
      if states[arm.name, s]
    ]
    line = [f'`{arm.name}`', ', '.join([str(done), *notes])]
    for metric, _, form in study.columns:
      values = list(verdicts.values(metric, arm.name, rows).values())
      line.append(_spread(values, form))
    cells.append(line)
  return 'Mean ± standard deviation over seeds.\n\n' + table(header, cells)


def _spread(values: Sequence[float], form: str) -> str:
  if not values:
    return '-'
  mean = format(float(np.mean(values)), form)
  if len(values) == 1:
    return mean
  return f'{mean} ± {format(float(np.std(values, ddof=1)), form)}'


def _how(study, rows) -> str:
  done = [r for r in results.latest(rows).values() if r['status'] == 'done']
  flags = ' '.join(
    f'--config.{k}={v}' for k, v in results.placeholders(study.flags).items()
  )
  spec = f'{study.path}:{study.size}'
  lines = [
    '```sh',
    f'python -m experiments.sweep --config={spec} {flags}'.rstrip()
    + f' --workdir=/tmp/moe_jax/{study.name}',
    f'python -m experiments.verdict --workdir=experiments/results/{study.name}',
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
        str(v.pairs),
        v.outcome + (f': {v.reason}' if v.reason else ''),
      )
    )
  return out


def source(
  rows: Sequence[results.Row], workdir: str | os.PathLike
) -> tuple[str, dict]:
  """('configs/ablations/x.py:quick', flags) of the rows of a workdir.

  A file outside of the working directory by its absolute path, where the sweep
  ran on this machine, else by its name.

  Raises:
    ValueError: no rows, or rows of several studies.
  """
  if not rows:
    raise UserError(f'{workdir} holds no results')
  found = {
    json.dumps([r['path'], r['study'], r['size'], r['flags']]) for r in rows
  }
  if len(found) > 1:
    raise UserError(f'{workdir} holds results of {len(found)} sweeps')
  path, _, size, flags = json.loads(found.pop())
  return f'{results.source(pathlib.Path(workdir), path)}:{size}', flags


def check_own(spec: str) -> None:
  """Raises ValueError where a study that results name is not of `configs/`.

  Reading it runs it, and whoever wrote the results chose it.
  """
  path = spec.rpartition(':')[0]
  own = pathlib.Path('configs').resolve()
  if own not in pathlib.Path(path).resolve().parents:
    raise UserError(
      f'the results name the study file {path!r}, which is none of {own} and'
      f' would be run; if you trust it: --study={path}'
    )
