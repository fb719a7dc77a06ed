"""results.jsonl: one JSON line a run, appended when the run is over.

A line tells what ran, where and with what result, and no path of the machine:
values of fields that are paths are replaced by the field's name in capitals.
"""

import datetime
import fcntl
import hashlib
import json
import math
import os
import pathlib
import re
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

import moe_jax
from moe_jax import json_files
from moe_jax.errors import UserError
from moe_jax.runs import config_history, configs
from moe_jax.studies import rows as rows_lib, study as study_lib

FILE, _SOURCE = 'results.jsonl', 'study.txt'
DONE, DIVERGED, FAILED = rows_lib.DONE, rows_lib.DIVERGED, rows_lib.FAILED
# What a run need not be done again for.
FINISHED = (DONE, DIVERGED)
_PATHS = (
  'data.dir',
  'data.cache',
  'data.task_file',
  'tasks.small',
  'tasks.large',
  'train.init_from',
  'train.teacher',
)

Row = dict[str, Any]


def placeholders(flat: Mapping[str, Any]) -> dict[str, Any]:
  """The fields with every path replaced by a name: 'DIR' for data.dir."""
  out = {}
  for field, value in flat.items():
    is_path = isinstance(value, str) and value.startswith(('/', '~'))
    if value and (field in _PATHS or is_path):
      value = field.rpartition('.')[2].upper()
    out[field] = value
  return out


def without_paths(text: str) -> str:
  """A message with the directories of its absolute paths cut off."""
  return re.sub(r'(?<![\w.:/])~?/(?:[^\s/:\'",;]+/)*', '', text)


def digests(config: Any, origins: Mapping[str, str] | None = None) -> list[str]:
  """Of a run's config, less its seed and the machine's paths.

  Args:
    config: of the run.
    origins: {'init_from': name of the arm}, where it has such.

  Returns:
    Today's digest, and those that earlier code gave to the same run, which had
    fewer fields then; newest first.
  """
  flat = configs.flatten(config)
  for field in ('seed', 'data.cache', 'train.init_from', 'train.teacher'):
    flat.pop(field, None)
  named = {f'train.{k}': v for k, v in (origins or {}).items()}
  found = []
  for form in config_history.forms(flat):
    form = placeholders(form) | named
    text = json.dumps(form, sort_keys=True, default=list)
    found.append(hashlib.sha256(text.encode()).hexdigest()[:16])
  return found


def digest(config: Any, origins: Mapping[str, str] | None = None) -> str:
  """The first of `digests`."""
  return digests(config, origins)[0]


def arm_digests(study: study_lib.Study, arm: study_lib.Arm) -> list[str]:
  """`digests` of an arm: the same for all of its seeds."""
  names = {'init_from': arm.init_from, 'teacher': arm.teacher}
  named = {k: v for k, v in names.items() if v} | arm.made
  return digests(study.config_of(arm, 0), named)


def arm_digest(study: study_lib.Study, arm: study_lib.Arm) -> str:
  """The first of `arm_digests`."""
  return arm_digests(study, arm)[0]


def append(path: pathlib.Path, row: Row) -> None:
  """Adds a line, whole, also where others add theirs at the same time."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path, 'a+b') as f:
    fcntl.flock(f, fcntl.LOCK_EX)
    line = json.dumps(row, allow_nan=False).encode() + b'\n'
    f.seek(0, os.SEEK_END)
    if f.tell():
      f.seek(-1, os.SEEK_END)
      if f.read(1) != b'\n':  # what a kill left torn ends here
        line = b'\n' + line
    f.write(line)
    f.flush()
    os.fsync(f.fileno())


def keep_source(workdir: pathlib.Path, study: study_lib.Study) -> None:
  """Writes where a study file outside of the working directory is.

  The rows have its name alone; this file stays in the workdir.
  """
  if study.file != study.path:
    (workdir / _SOURCE).write_text(f'{study.file}\n')


def source(workdir: pathlib.Path, path: str) -> str:
  """The file of the study that rows name by `path`, on this machine."""
  kept = workdir / _SOURCE
  where = kept.read_text().strip() if kept.exists() else ''
  return where if pathlib.Path(where).name == path else path


def for_keeping(row: Row, study: study_lib.Study | None = None) -> Row:
  """The row without numbers by domain, with seven digits of the others.

  Those by domain stay that a claim of the study names.
  """
  claims = study.claims if study else ()
  named = ' '.join(m for c in claims for m in c.metrics)
  short = lambda v: float(f'{v:.7g}') if isinstance(v, float) else v
  out = dict(row)
  if 'metrics' in row:
    out['metrics'] = {
      k: short(v)
      for k, v in row['metrics'].items()
      if k in named or not re.fullmatch(r'eval/[^/]+/.+', k)
    }
  if 'curve' in row:
    out['curve'] = {k: [short(v) for v in x] for k, x in row['curve'].items()}
  return out


def read(path: pathlib.Path) -> list[Row]:
  """The lines of a file, [] where there is none.

  What is torn, or no row, is left out with a line in the log.
  """
  if not path.exists():
    return []
  rows = []
  for number, line in enumerate(json_files.lines(path), 1):
    if not line.strip():
      continue
    try:
      row = json_files.parse(line, f'{path}, line {number}')
    except UserError:
      logging.warning('%s: line %s is torn', path, number)
      continue
    if fault := rows_lib.fault(row):
      logging.warning('%s: line %s is no row: %s', path, number, fault)
    else:
      rows.append(row)
  return rows


def latest(rows: Sequence[Row]) -> dict[tuple[str, int], Row]:
  """The row of each (arm, seed): the first finished one, else the last."""
  found: dict[tuple[str, int], Row] = {}
  for row in rows:
    key = row['arm'], row['seed']
    if key not in found or found[key]['status'] not in FINISHED:
      found[key] = row
  return found


def check(path: pathlib.Path, study: study_lib.Study) -> list[Row]:
  """`read`, of a file that is to hold this study's results.

  Raises:
    ValueError: results of another study, size or config; names what differs.
  """
  rows = read(path)
  for row in rows:
    theirs, ours = (
      f'{row.get("study")}:{row.get("size")}',
      f'{study.name}:{study.size}',
    )
    if theirs != ours:
      raise UserError(
        f'{path} holds results of {theirs}, this is {ours}; choose another '
        'workdir'
      )
  arms = {a.name: arm_digests(study, a) for a in study.arms}
  for row in latest(rows).values():
    name = row['arm']
    if name in arms and row['config_digest'] not in arms[name]:
      raise UserError(
        f'{path} holds results of arm {name!r} with another config'
        f'{_difference(row, study)}; choose another workdir'
      )
  return rows


def _difference(row: Row, study: study_lib.Study) -> str:
  """What is known of it: the arm's overrides, and the command line's."""
  arm = study.arm(row['arm'])
  theirs = row.get('overrides', {}) | row.get('flags', {})
  ours = dict(arm.overrides) | dict(study.flags)
  for field in ('init_from', 'teacher'):
    theirs |= {field: row[field]} if field in row else {}
    ours |= {field: getattr(arm, field)} if getattr(arm, field) else {}
  theirs, ours = (
    placeholders(json.loads(json.dumps(v, default=list)))
    for v in (theirs, ours)
  )
  shown = lambda v, k: repr(v[k]) if k in v else 'the default'
  changed = [
    f'{k} is {shown(theirs, k)} there, {shown(ours, k)} here'
    for k in sorted(theirs.keys() | ours.keys())
    if theirs.get(k) != ours.get(k)
  ]
  return f' ({"; ".join(changed)})' if changed else ' (the file has changed)'


def metrics(summary: Mapping[str, Any]) -> dict[str, float]:
  """All finite numbers of a summary, nested ones by 'a/b'; no lists."""
  out = {}
  for k, v in summary.items():
    if isinstance(v, Mapping):
      out |= {f'{k}/{n}': x for n, x in metrics(v).items()}
    elif isinstance(v, int | float) and not isinstance(v, bool):
      if math.isfinite(v):
        out[k] = v
  return out


def commit() -> str:
  """Of the code that runs; '' outside of a repository."""
  root = pathlib.Path(moe_jax.__file__).parent.parent
  git = lambda *args: subprocess.run(
    ['git', '-C', str(root), *args], capture_output=True, text=True
  ).stdout.strip()
  try:
    changed = git('status', '--porcelain', '--untracked-files=no')
    return git('rev-parse', '--short=12', 'HEAD') + ('+' if changed else '')
  except OSError:
    return ''


def today() -> str:
  return datetime.datetime.now(datetime.UTC).strftime('%Y-%m-%d')
