"""Benchmarks as a record and as a table."""

from collections.abc import Sequence
from typing import Any

from moe_jax.benchmarks import machine, scopes

# Fact, its column, unit, format.
_FACTS = (
  ('kept', 'kept %', 100, '.1f'),
  ('load', 'load', 1, '.2f'),
  ('temporaries', 'temporaries MB', 1e-6, '.1f'),
  ('beyond_router', 'beyond router MB', 1e-6, '.1f'),
  ('largest', 'largest array', 1, 's'),
  ('compile_seconds', 'compile s', 1, '.1f'),
  ('compiled_again', 'compiled again', 1, 'd'),
)

BUSY = 0.3  # processes


def record(
  rows: Sequence[dict[str, Any]], repeats: int, load: float
) -> dict[str, Any]:
  """What bench.json holds: the machine, then a row a case.

  Args:
    rows: from `cases.run`.
    repeats: rounds.
    load: of the machine before the first case (`machine.load`).
  """
  return {
    'machine': machine.describe() | {'load_before': round(load, 2)},
    'repeats': repeats,
    'failed': sum(len(r['failed']) for r in rows),
    'rows': list(rows),
  }


def table(row: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
  """Header and a line a candidate of one case.

  Milliseconds are the median and the quartiles; `x dense` is the ratio to that
  baseline, with quartiles; `x floor` as in `cases`.
  """
  baselines = [b for b in row['baselines'] if b in row['candidates']]
  header = [row['case'], 'ms', 'quartiles', 'TFLOP/s', 'x floor']
  header += [f'x {b}' for b in baselines]
  header += [label for _, label, _, _ in _FACTS]
  lines = []
  for name, c in row['candidates'].items():
    line = [name, *_times(c)] if 'seconds' in c else [name, *'----']
    for b in baselines:
      r = c.get('ratios', {}).get(b)
      line.append(_spread(r) if r else '-')
    line += [_fact(c['facts'], *column) for column in _FACTS]
    lines.append(line)
  # Columns that say nothing are left out.
  keep = [
    i
    for i in range(len(header))
    if i == 0 or any(line[i] != '-' for line in lines)
  ]
  cut = lambda line: [line[i] for i in keep]
  return cut(header), [cut(line) for line in lines]


def parts(row: dict[str, Any]) -> list[str]:
  """A line for each candidate whose time is split by part."""
  lines = []
  for name, c in row['candidates'].items():
    facts, over = c['facts'], c.get('over_floor')
    if over and {'parts_percent', 'no_parts'} & facts.keys():
      parts_ = facts.get('parts_percent')
      shares = scopes.text(parts_) if parts_ else facts['no_parts']
      rate = f'{100 / over:.0f} % of the matmul rate'
      lines.append(f'{name}: {rate}; % of the time: {shares}')
  return lines


def machine_line(record: dict[str, Any]) -> str:
  """Processor, threads, versions, and others' load, in one line."""
  m = record['machine']
  versions = ', '.join(f'{k} {v}' for k, v in m['versions'].items())
  where = f'{m["devices"]} x {m["device"]}, {m["threads"]} threads'
  others = f'load average before {m["load_before"]}'
  if m['load_before'] > BUSY:
    others += ', NOT QUIET: repeat on a quiet machine'
  return f'{where}; {versions}; {record["repeats"]} rounds; {others}'


def failures(rows: Sequence[dict[str, Any]]) -> list[str]:
  """A line for each candidate that failed."""
  return [
    f'FAILED {r["suite"]} {r["case"]}, {name}: {said}'
    for r in rows
    for name, said in r['failed'].items()
  ]


def _spread(r: dict[str, float]) -> str:
  return f'{r["median"]:.2f} ({r["low"]:.2f}-{r["high"]:.2f})'


def _times(c: dict[str, Any]) -> list[str]:
  s = c['seconds']
  digits = 1 if s['median'] > 0.01 else 3
  return [
    f'{1e3 * s["median"]:.{digits}f}',
    f'{1e3 * s["low"]:.{digits}f}-{1e3 * s["high"]:.{digits}f}',
    f'{c["flops"] / s["median"] / 1e12:.3f}' if c['flops'] else '-',
    f'{c["over_floor"]:.2f}' if c['over_floor'] else '-',
  ]


def _fact(facts: dict[str, Any], name: str, _, unit, form: str) -> str:
  value = facts.get(name)
  if value is None or isinstance(value, str):
    return value or '-'
  return format(unit * value, form)
