"""Tables of a run and of several runs, as cells and as plain aligned text.

The same cells stand in the terminal and in the HTML report.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from moe_jax.plots import records, style

WIDTH = 100  # columns of a terminal
_NONE = '-'
_DOMAIN_HEADER = (
  'domain',
  'documents',
  'bytes',
  'bits/byte',
  '95 % interval',
  'bigram',
  'difference',
)
# What a comparison lists after the scores: key, label, decimals or 'si'.
_COMPARED = (
  ('loss', 'last training loss', 4),
  ('moe/dropped', 'dropped %', 2),
  ('moe/eval_dropped', 'dropped % in evaluation', 2),
  ('moe/load_max', 'load, max/mean', 2),
  ('tokens_per_second', 'tokens per second', 'si'),
  ('mfu', 'MFU %', 1),
  ('parameters', 'parameters', 'si'),
  ('active_parameters', 'active parameters', 'si'),
  ('flops_per_token', 'FLOPs per token', 'si'),
  ('steps', 'steps', 0),
  ('seconds', 'seconds', 0),
)
_PERCENT = ('moe/dropped', 'moe/eval_dropped', 'mfu')

DIFFERENCE = 'difference/bits_per_byte'

Table = tuple[Sequence[str], list[Sequence[str]]]


def domains(summary: Mapping[str, Any]) -> Table:
  """Header and a row a domain, then one for all: bits per byte and bigram.

  The difference is the model's less the bigram's: below 0 the model is better.
  """
  names = records.domains(summary)
  rows = [_domain(summary, name, f'eval/{name}/') for name in names]
  if records.BITS in summary:
    total = dict(summary)
    for k in ('documents', 'bytes'):
      counts = [records.number(summary, f'eval/{n}/{k}') for n in names]
      # One unknown count, or no domain, leaves the sum unknown.
      total.setdefault(f'eval/{k}', sum(counts) if counts else math.nan)
    rows.append(_domain(total, 'overall', 'eval/'))
  return _DOMAIN_HEADER, rows


def differences(summary: Mapping[str, Any]) -> Table:
  """Header and a row a domain, then one for all: what another run is above.

  Below 0 the run of the summary has fewer bits per byte.
  """
  rows = []
  for name in (*records.domains(summary), ''):
    key = f'difference/{name}/bits_per_byte' if name else DIFFERENCE
    value, low, high = (
      records.number(summary, f'{key}{end}') for end in ('', '_low', '_high')
    )
    if not math.isnan(value):
      ends = ' to '.join(_signed(v, 3) for v in (low, high))
      rows.append((name or 'overall', _signed(value, 3), ends))
  return ('less the other run', 'bits/byte', '95 % interval, paired'), rows


def ensemble(summary: Mapping[str, Any]) -> list[Table]:
  """Bits a byte by domain, of an ensemble and its models; and differences.

  Below 0 the ensemble has fewer bits per byte than the model.
  """
  models = summary['models']
  rows = []
  for name in (*records.domains(summary), ''):
    key = f'eval/{name}/bits_per_byte' if name else records.BITS
    values = [records.number(s, key) for s in (summary, *models.values())]
    rows.append((name or 'overall', *(_cell(v, 4) for v in values)))
  header = ('bits/byte', 'ensemble', *models)
  apart = []
  for model, found in summary['difference'].items():
    value, low, high = (
      records.number(found, f'{DIFFERENCE}{end}')
      for end in ('', '_low', '_high')
    )
    ends = ' to '.join(_signed(v, 4) for v in (low, high))
    weight = _cell(records.number(summary['weights'], model), 3)
    apart.append((model, weight, _signed(value, 4), ends))
  less = ('ensemble less', 'mean weight', 'bits/byte', '95 % interval, paired')
  return [(header, rows), (less, apart)]


def facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
  """Names and values of what else the end of a run tells."""
  found = []

  def add(label, key, form):
    if not math.isnan(records.number(summary, key)):
      found.append((label, form(records.number(summary, key))))

  for score in records.scores([summary]):
    form = _percent if records.scale(score) > 1 else '{:.4f}'.format
    add(score['label'], score['key'], form)
    low, high = (
      records.number(summary, f'{score["key"]}_{end}')
      for end in ('low', 'high')
    )
    if not math.isnan(low + high):
      found.append(('95 % interval', f'{form(low)} to {form(high)}'))
    add(f'best {score["label"]} of the run', score['best'], form)
    add(score['floor_label'], score['floor'], form)
  add('examples', 'eval/examples', '{:,.0f}'.format)
  # The mean of the last tenth, where it is known.
  mean = 'train/dropped' if 'train/dropped' in summary else 'moe/dropped'
  add('dropped in training', mean, _percent)
  add('dropped in evaluation', 'moe/eval_dropped', _percent)
  for key in summary:
    if key.startswith('replay/'):
      layer = key.removeprefix('replay/')
      add(f"record's choices that {layer} makes, too", key, _percent)
  add('load max/mean, all layers', 'moe/load_max', '{:.2f}'.format)
  for layer in _layers(summary):
    key = f'moe/layer_{layer}/load_max'
    add(f'load max/mean, layer {layer}', key, '{:.2f}'.format)
  add('tokens per second', 'tokens_per_second', '{:,.0f}'.format)
  add('MFU, of the measured matmul', 'mfu', _percent)
  add('matmul FLOPs per second', 'matmul_flops_per_second', style.si)
  add('parameters', 'parameters', style.si)
  add('active parameters', 'active_parameters', style.si)
  add('FLOPs per token', 'flops_per_token', style.si)
  add('steps', 'steps', '{:,.0f}'.format)
  add('seconds', 'seconds', '{:,.0f}'.format)
  for label, key in (
    ('mesh', 'mesh'),
    ('devices', 'devices'),
    ('platform', 'platform'),
    ('jax', 'jax'),
  ):
    if key in summary:
      found.append((label, str(summary[key])))
  return found


def end_of_run(summary: Mapping[str, Any], files: Mapping[str, str]) -> str:
  """What a training run prints last; `files` maps a label to a path."""
  parts = []
  for header, rows in (domains(summary), differences(summary)):
    if rows:
      parts.append(text(header, rows))
  parts.append(_pairs(facts(summary)))
  parts.append(_pairs(list(files.items())))
  return '\n\n'.join(p for p in parts if p) + '\n'


def comparison(runs: Sequence[records.Run]) -> Table:
  """A row a quantity, a column a run, with its difference to the first run.

  Differences are of the unrounded values.
  """
  keys = [
    (f'eval/{d}/bits_per_byte', f'bits/byte, {d}', 4)
    for d in dict.fromkeys(d for r in runs for d in records.domains(r.summary))
  ]
  keys.append((records.BITS, 'bits/byte, overall', 4))
  keys = [(*k, 1.0) for k in keys]
  for score in records.scores([r.summary for r in runs]):
    scale, label = records.scale(score), score['label']
    unit, decimals = (' %', 2) if scale > 1 else ('', 4)
    keys += [
      (score['key'], f'{label}{unit}', decimals, scale),
      (score['best'], f'best {label}{unit}', decimals, scale),
      (score['floor'], f'{score["floor_label"]}{unit}', decimals, scale),
    ]
  keys += [(*c, 100.0 if c[0] in _PERCENT else 1.0) for c in _COMPARED]
  rows = []
  for key, label, decimals, scale in keys:
    values = [scale * _value(r, key) for r in runs]
    if all(math.isnan(v) for v in values):
      continue
    cells = [_cell(v, decimals) for v in values]
    for i, v in enumerate(values[1:], 1):
      delta = v - values[0]
      if delta and not math.isnan(delta):
        cells[i] += f' ({_signed(delta, decimals)})'
    rows.append((label, *cells))
  return ('', *(r.name for r in runs)), rows


def config_differences(runs: Sequence[records.Run]) -> Table:
  """The config's fields that are not the same in all runs."""
  flat = [records.flatten(r.config) for r in runs]
  rows = []
  for k in dict.fromkeys(k for f in flat for k in f):
    values = [str(f[k]) if k in f else _NONE for f in flat]
    if len(set(values)) > 1:
      rows.append((k, *values))
  return ('config', *(r.name for r in runs)), rows


def not_alike(runs: Sequence[records.Run]) -> str:
  """A warning where the runs were not evaluated on the same bytes, or ''."""
  sizes = [
    {k: v for k, v in r.summary.items() if re.fullmatch('eval/.+/bytes', k)}
    for r in runs
    if r.summary
  ]
  if all(s == sizes[0] for s in sizes):
    return ''
  return (
    'The runs were evaluated on different bytes: their bits per byte are not '
    'like for like.'
  )


def side_by_side(runs: Sequence[records.Run]) -> str:
  """The comparison as text; more runs than fit go on below, in blocks."""
  parts = []
  for table in (comparison(runs), config_differences(runs)):
    if table[1]:
      parts.extend(_blocks(*table))
  if len(runs) > 1:
    parts.append(f'In parentheses: the difference to {runs[0].name}.')
    if not_alike(runs):
      parts.append(not_alike(runs))
  return '\n\n'.join(parts) + '\n'


def text(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Aligned columns under a rule; the first flush left, others flush right."""
  rows = [[style.short(c, 44) for c in r] for r in (header, *rows)]
  widths = [max(map(len, column)) for column in zip(*rows)]
  lines = []
  for row in rows:
    first = row[0].ljust(widths[0])
    rest = [c.rjust(w) for c, w in zip(row[1:], widths[1:])]
    lines.append('  '.join([first, *rest]).rstrip())
  lines.insert(1, '-' * (sum(widths) + 2 * (len(widths) - 1)))
  return '\n'.join(lines)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """The same as a Markdown table."""
  lines = [header, ['---', *['---:'] * (len(header) - 1)], *rows]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _domain(summary, name, prefix) -> tuple[str, ...]:
  get = lambda key: records.number(summary, prefix + key)
  value, floor = get('bits_per_byte'), get('bigram_bits_per_byte')
  low, high = get('bits_per_byte_low'), get('bits_per_byte_high')
  interval = _NONE if math.isnan(low + high) else f'{low:.3f} to {high:.3f}'
  return (
    name,
    _cell(get('documents'), 0),
    _cell(get('bytes'), 0),
    _cell(value, 3),
    interval,
    _cell(floor, 3),
    _signed(value - floor, 3),
  )


def _value(run, key) -> float:
  value = records.number(run.summary, key)
  if math.isnan(value):
    # A run that goes on has no summary: its last log line, then.
    logged = run.series(key)[1]
    value = float(logged[-1]) if len(logged) else math.nan
  return value


def _layers(summary) -> list[int]:
  found = (re.fullmatch(r'moe/layer_(\d{1,9})/load_max', k) for k in summary)
  return sorted(int(m[1]) for m in found if m)


def _cell(value: float, decimals: int | str) -> str:
  if math.isnan(value):
    return _NONE
  return style.si(value) if decimals == 'si' else f'{value:,.{decimals}f}'


def _signed(value: float, decimals: int | str) -> str:
  if math.isnan(value):
    return _NONE
  cell = _cell(value, decimals)
  return cell if cell.startswith('-') else f'+{cell}'


def _percent(fraction: float) -> str:
  return f'{100.0 * fraction:.2f} %'


def _pairs(pairs) -> str:
  width = max((len(k) for k, _ in pairs), default=0)
  return '\n'.join(f'{k.ljust(width)}  {v}' for k, v in pairs)


def _blocks(header, rows) -> list[str]:
  blocks = []
  start = 1
  while start < len(header):
    # As many runs as fit, one at least.
    for end in range(len(header), start, -1):
      keep = (0, *range(start, end))
      block = text(
        [header[i] for i in keep], [[row[i] for i in keep] for row in rows]
      )
      if max(map(len, block.splitlines())) <= WIDTH:
        break
    blocks.append(block)
    start = end
  return blocks
