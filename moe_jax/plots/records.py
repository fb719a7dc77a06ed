"""Reads the records of a training run: config, metrics and summary."""

import dataclasses
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moe_jax import json_files
from moe_jax.errors import UserError

_DOMAIN = re.compile(r'eval/(.+)/bits_per_byte')
BITS = 'eval/bits_per_byte'  # has a table and a figure of its own, by domain
# Of runs whose summary does not say, or that have none yet.
_PROBLEM = {
  'loss_unit': 'cross-entropy, nats per token',
  'shown': [
    {
      'key': 'eval/accuracy',
      'label': 'accuracy',
      'unit': '% of examples',
      'floor': 'eval/majority',
      'floor_label': 'most frequent label',
      'best': 'best/accuracy',
    }
  ],
}


@dataclasses.dataclass(frozen=True)
class Run:
  """The records of one run.

  Attributes:
    workdir: where they were read.
    name: what figures and tables call the run.
    config: nested, as in `config.json`.
    rows: one dict a log step, in order, each with an integer `step`.
    summary: flat, as in `summary.json`; empty while the run goes on.
  """

  workdir: str
  name: str
  config: dict[str, Any]
  rows: list[dict[str, Any]]
  summary: dict[str, Any]

  @property
  def last_step(self) -> int:
    return self.rows[-1]['step']

  def series(self, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps [S] and values [S] (f64) of the log steps that have `key`.

    What is no finite number is nan.
    """
    rows = [r for r in self.rows if key in r]
    values = np.array([number(r, key) for r in rows], np.float64)
    values[~np.isfinite(values)] = np.nan
    return np.array([r['step'] for r in rows]), values

  def keys(self, pattern: str) -> list[str]:
    """The keys of the metrics that match all of a regular expression."""
    found = dict.fromkeys(k for r in self.rows for k in r)
    return [k for k in found if re.fullmatch(pattern, k)]

  def loads(self) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Steps [S], and of each MoE layer the load [S, E] over the mean load.

    1 is balanced, E is one expert doing everything. No layers in a dense run.
    """
    rows = [r for r in self.rows if r.get('moe/load')]
    if not rows:
      return np.zeros(0, int), {}
    sizes = lambda row: [len(load_E) for load_E in row['moe/load']]
    rows = [r for r in rows if sizes(r) == sizes(rows[-1])]
    layers = rows[-1].get('moe/layers') or range(len(rows[-1]['moe/load']))
    loads = {}
    for i, layer in enumerate(layers):
      load_SE = np.array([r['moe/load'][i] for r in rows], np.float64)
      loads[int(layer)] = load_SE * load_SE.shape[1]
    return np.array([r['step'] for r in rows]), loads


def read(workdir: str) -> Run:
  """Reads a workdir; one without a summary is a run that has not ended.

  Raises:
    FileNotFoundError: no such directory, no `config.json`, no `metrics.jsonl`.
    ValueError: a file that is not what it should be; names the line.
  """
  root = pathlib.Path(workdir)
  if not root.is_dir():
    raise FileNotFoundError(f'{workdir}: no such directory')
  for name in ('config.json', 'metrics.jsonl'):
    if not (root / name).is_file():
      raise FileNotFoundError(
        f'{root / name}: no such file; is {workdir} the workdir of a run?'
      )
  path = root / 'metrics.jsonl'
  rows = []
  for i, line in enumerate(json_files.lines(path), 1):
    row = json_files.parse_object(line, f'{path}, line {i}')
    if not _is_whole(row.get('step')):
      raise UserError(f"{path}, line {i}: 'step' is no integer")
    if row.get('moe/load') and not _are_loads(row):
      raise UserError(
        f"{path}, line {i}: 'moe/load' is no list of loads for each of"
        " 'moe/layers'"
      )
    rows.append(row)
  if not rows:
    raise UserError(f'{path}: empty, no step was logged')
  path = root / 'config.json'
  config = json_files.read(path)
  path = root / 'summary.json'
  summary = json_files.read(path) if path.is_file() else {}
  if summary.get('problem') and not _is_problem(summary['problem']):
    raise UserError(f"{path}: 'problem' does not say what scores are shown")
  name = str(summary.get('name') or root.resolve().name)
  return Run(str(workdir), name, config, rows, summary)


def _is_whole(value: Any) -> bool:
  return type(value) is int and 0 <= value < 1 << 53


def _are_loads(row: Mapping[str, Any]) -> bool:
  """Whether 'moe/load' [layers, E] and 'moe/layers' are of a run of ours."""
  load, layers = row['moe/load'], row.get('moe/layers') or ()
  return (
    isinstance(load, list)
    and all(isinstance(load_E, list) and load_E for load_E in load)
    and all(type(v) in (int, float) for load_E in load for v in load_E)
    and all(abs(v) < 1e300 for load_E in load for v in load_E)
    and isinstance(layers, list | tuple)
    and all(map(_is_whole, layers))
    and len(layers) in (0, len(load))
  )


def _is_problem(found: Any) -> bool:
  """Whether it is what `problems.base.Problem.described` gives."""
  if not isinstance(found, dict) or not isinstance(found.get('shown'), list):
    return False
  (names,) = _PROBLEM['shown']
  return isinstance(found.get('loss_unit'), str) and all(
    isinstance(score, dict)
    and all(isinstance(score.get(name), str) for name in names)
    for score in found['shown']
  )


def read_all(workdirs: Sequence[str]) -> list[Run]:
  """Reads several runs; those that share a name are called by their workdir."""
  runs = [read(w) for w in workdirs]
  names = [r.name for r in runs]
  return [
    dataclasses.replace(r, name=r.workdir) if names.count(r.name) > 1 else r
    for r in runs
  ]


def number(summary: Mapping[str, Any], key: str) -> float:
  """The number under `key`; nan where there is none."""
  value = summary.get(key)
  try:
    return float(value) if isinstance(value, int | float) else math.nan
  except OverflowError:  # of hundreds of digits
    return math.nan


def domains(summary: Mapping[str, Any]) -> list[str]:
  """The domains that an evaluation's summary speaks of, in its order."""
  return [m[1] for m in map(_DOMAIN.fullmatch, summary) if m]


def problem(summary: Mapping[str, Any]) -> Mapping[str, Any]:
  """What a summary says of the loss and of the scores that are shown."""
  return summary.get('problem') or _PROBLEM


def scores(summaries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """The scores that are shown, but bits per byte; see `problems.base.Score`."""
  found = [s for x in summaries for s in problem(x)['shown']]
  return list({s['key']: s for s in found if s['key'] != BITS}.values())


def scale(score: Mapping[str, Any]) -> float:
  """What values are multiplied by to be shown."""
  return 100.0 if score['unit'].startswith('%') else 1.0


def flatten(config: dict[str, Any], prefix: str = '') -> dict[str, Any]:
  """`{'train': {'steps': 3}}` -> `{'train.steps': 3}`."""
  flat = {}
  for k, v in config.items():
    if isinstance(v, dict):
      flat.update(flatten(v, f'{prefix}{k}.'))
    else:
      flat[f'{prefix}{k}'] = v
  return flat
