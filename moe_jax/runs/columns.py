"""metrics.csv: the numbers of metrics.jsonl, one column each.

`pandas.read_csv(path)` and `numpy.genfromtxt(path, delimiter=',', names=True)`
give numbers: an expert's load is the column `moe/load/layer_1/3`, what a line
lacks is empty, and text is left out. The file follows from metrics.jsonl, which
is the record: it is made anew on a resume and where a line brings new columns,
as the first evaluation does.
"""

import csv
import io
import pathlib
from collections.abc import Mapping
from typing import Any

from moe_jax import json_files
from moe_jax.runs import durable

COLUMNS = 'metrics.csv'


class Table:
  """Appends rows to `metrics.csv` beside a file of JSON lines."""

  def __init__(self, source: pathlib.Path):
    self._source, self._path = source, source.with_name(COLUMNS)
    self._file, self._names = None, []
    self._rebuild()

  def add(self, line: Mapping[str, Any]) -> None:
    """A row; its line must stand in the source already."""
    row = flat(line)
    if row.keys() <= set(self._names):
      self._file.write(_text([row.get(k, '') for k in self._names]))
      self._file.flush()
    else:
      self._rebuild()

  def close(self) -> None:
    self._file.close()

  def _rebuild(self) -> None:
    where = str(self._source)
    lines = json_files.lines(self._source)
    rows = [flat(json_files.parse_object(x, where)) for x in lines]
    self._names = list(dict.fromkeys(k for row in rows for k in row))
    cells = [[row.get(k, '') for k in self._names] for row in rows]
    if self._file:
      self._file.close()
    text = _text(self._names, *cells) if rows else ''
    durable.replace(self._path, text)
    self._file = self._path.open('a')


def flat(line: Mapping[str, Any]) -> dict[str, Any]:
  """Numbers by column, '' for null.

  A list that has an item a layer is told apart by the layers' numbers.
  """
  out = {}

  def visit(name, value, names=()):
    if isinstance(value, Mapping):
      for k, v in value.items():
        visit(f'{name}/{k}', v)
    elif isinstance(value, list):
      at = names if len(names) == len(value) else range(len(value))
      for k, v in zip(at, value):
        visit(f'{name}/{k}', v)
    elif value is None:
      out[name] = ''
    elif isinstance(value, bool | int | float):
      out[name] = int(value) if isinstance(value, bool) else value

  layers = line.get('moe/layers')
  layers = layers if isinstance(layers, list) else ()
  layers = [f'layer_{n}' for n in layers]
  for k, v in line.items():
    if k != 'moe/layers':
      visit(k, v, layers if k.startswith(('moe/', 'health/')) else ())
  return out


def _text(*rows) -> str:
  out = io.StringIO()
  csv.writer(out, lineterminator='\n').writerows(rows)
  return out.getvalue()
