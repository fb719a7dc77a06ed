"""What a line of results.jsonl must be, to be believed.

Verdicts, estimates and pages take numbers out of lines that a kill has torn,
that earlier code wrote, or others.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

DONE, DIVERGED, FAILED = 'done', 'diverged', 'failed'
_TEXTS = """study path size arm stage status config_digest command commit
  date""".split()
_TABLES = ('overrides', 'flags', 'machine')
# What not all rows have.
_MORE = ('data', 'error', 'pretrained', 'init_from', 'teacher')
_DIRECTORY = r'runs/(?!\.+/)[\w.-]+/-?\d+'
_MACHINE = ('devices', 'device', 'threads')


def fault(row: Any) -> str:
  """What is wrong with a JSON value as a row; '' where nothing is."""
  if not isinstance(row, dict):
    return 'no object'
  wanted = dict.fromkeys(_TEXTS, str) | dict.fromkeys(_TABLES, dict)
  for name, kind in wanted.items():
    if not isinstance(row.get(name), kind):
      return f'{name!r} is {_shown(row, name)}'
  for name in _MORE:
    if name in row and not isinstance(row[name], str):
      return f'{name!r} is {_shown(row, name)}'
  for name in ('needs', 'domains'):
    if not isinstance(row.get(name, []), list):
      return f'{name!r} is {_shown(row, name)}'
  if not all(map(_is_key, row.get('needs', ()))):
    return f"'needs' is {_shown(row, 'needs')}"
  if not all(isinstance(d, str) for d in row.get('domains', ())):
    return f"'domains' is {_shown(row, 'domains')}"
  if not re.fullmatch(_DIRECTORY, row.get('pretrained', 'runs/x/0')):
    return f"'pretrained' is {_shown(row, 'pretrained')}"
  if type(row.get('seed')) is not int:
    return f"'seed' is {_shown(row, 'seed')}"
  if row['status'] not in (DONE, DIVERGED, FAILED):
    return f"'status' is {_shown(row, 'status')}"
  if not _is_number(row.get('seconds')):
    return f"'seconds' is {_shown(row, 'seconds')}"
  lacks = [k for k in _MACHINE if k not in row['machine']]
  if lacks or not isinstance(row['machine'].get('versions'), dict):
    return f"'machine' is {_shown(row, 'machine')}"
  if 'metrics' in row or row['status'] == DONE:
    metrics = row.get('metrics')
    if not (isinstance(metrics, dict) and _are_numbers(metrics.values())):
      return f"'metrics' is {_shown(row, 'metrics')}"
  if 'curve' in row and not _is_curve(row['curve']):
    return f"'curve' is {_shown(row, 'curve')}"
  try:
    json.dumps(row, allow_nan=False)
  except ValueError:
    return 'a number in it is not finite'
  return ''


def _is_key(value: Any) -> bool:
  """[arm, seed], of a run that another needs."""
  pair = isinstance(value, list) and len(value) == 2
  return pair and isinstance(value[0], str) and type(value[1]) is int


def _is_curve(curve: Any) -> bool:
  if not isinstance(curve, Mapping):
    return False
  steps, losses = curve.get('step'), curve.get('loss')
  return (
    isinstance(steps, list)
    and isinstance(losses, list)
    and 0 < len(steps) == len(losses)
    and _are_numbers([*steps, *losses])
  )


def _are_numbers(values: Sequence[Any]) -> bool:
  return all(map(_is_number, values))


def _is_number(value: Any) -> bool:
  try:  # a whole number of hundreds of digits is no float
    return type(value) in (int, float) and math.isfinite(value)
  except OverflowError:
    return False


def _shown(row: Mapping[str, Any], name: str) -> str:
  return repr(row[name])[:60] if name in row else 'missing'
