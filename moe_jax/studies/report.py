"""Verdicts written down: claims.json, results.md and figures."""

import dataclasses
import json
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
  derived,
  lawful,
  pages,
  power,
  results,
  study as study_lib,
  units,
  verdicts,
)

CLAIMS, PAGE = 'claims.json', 'results.md'


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
  folder = out.name if out.name.startswith(study.name) else study.name
  (out / PAGE).write_text(pages.page(study, rows, found, fitted, folder))
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
    }
    | ({'units': v.units} if v.units not in (0, v.pairs) else {})
    | {
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
  found = derived.values(metric, arm, rows)
  done = derived.finished(rows)
  arms = [arm, *derived.named([metric], done)]
  return (
    verdicts.interval(units.of(found, arms, done).values) if found else None
  )


def _curve(arm, rows) -> ablations.Curve | None:
  curves = [
    r['curve']
    for (name, _), r in results.latest(rows).items()
    if name == arm and 'curve' in r
  ]
  if not curves:
    return None
  return curves[0]['step'], np.mean([c['loss'] for c in curves], 0)


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
