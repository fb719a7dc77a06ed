"""A model on a mesh, as text for people."""

from collections.abc import Mapping, Sequence
from typing import Any


def text(plan: Mapping[str, Any], parameters: bool = False) -> str:
  """Aligned tables of what `experiments.describe` found.

  Args:
    plan: its JSON object.
    parameters: also a line for each parameter.
  """
  total, active = plan['params_total'], plan['params_active']
  rows = [('parameters', 'total', '%', 'active')]
  for name, part in plan['parts'].items():
    share = f'{100 * part["total"] / total:.2f}'
    rows.append((name, _int(part['total']), share, _int(part['active'])))
  rows.append(('all', _int(total), '100.00', _int(active)))
  without = _int(plan['params_active_without_embedding'])
  rows.append(('all but the input embedding', '', '', without))
  blocks = [table(rows)]

  tokens = ' + '.join(
    f'{n:,} {name}' for name, n in plan['tokens_per_sequence'].items()
  )
  blocks.append(
    table(
      [
        ('FLOPs', f'a sequence is {tokens} tokens'),
        ('forward, a sequence', si(plan['flops_per_sequence_forward'])),
        ('training, a token', si(plan['flops_per_token'])),
        ('training, a target token', si(plan['flops_per_target_token'])),
        ('training, a step', si(plan['flops_per_step'])),
      ]
    )
  )

  sizes = ' '.join(f'{k}={v}' for k, v in plan['mesh'].items())
  rows = [('bytes on each device', f'{_count(plan["devices"])}: {sizes}')]
  rows += [(k, binary(v)) for k, v in plan['bytes_per_device'].items()]
  blocks.append(table([(k.replace('_', ' '), v) for k, v in rows]))

  rows = [('dispatch, bytes a step', 'forward and backward')]
  for key, label in (
    ('payload_per_device', 'payload, a device'),
    ('leaving_per_device', 'of it leaving the device, balanced loads'),
    ('worst_per_device', 'of it leaving the device, any loads'),
    ('leaving_total', 'leaving, all devices, balanced loads'),
  ):
    moved = plan['all_to_all']
    rows.append((label, binary(moved[key]) if moved else 'not counted'))
  for name, b in plan['buffers'].items():
    if b['rows'] is not None:
      size = f'{b["rows"]:,} x D {b["width"]:,} x {b["itemsize"]} B'
      rows.append((f'rows of a layer, {name} ({b["dispatch"]})', size))
  blocks.append(table(rows))

  if parameters:
    rows = [('parameter', 'shape', 'dtype', 'axes', 'spec', 'a device')]
    for p in plan['parameters']:
      shape = ' x '.join(map(str, p['shape']))
      axes = ' '.join(a or '-' for a in p['axes'])
      spec = ' '.join(
        a if isinstance(a, str) else '+'.join(a or '-') for a in p['spec']
      )
      size = binary(p['bytes_per_device'])
      rows.append((p['path'], shape, p['dtype'], axes, spec, size))
    blocks.append(table(rows, left=(0, 2, 3, 4)))
  return '\n\n'.join(blocks)


def si(value: float) -> str:
  """`1.42e11` -> `'142 G'`."""
  for scale, letter in ((1e18, 'E'), (1e15, 'P'), (1e12, 'T'), (1e9, 'G')):
    if value >= scale * 0.9995:
      return f'{value / scale:.4g} {letter}'
  return f'{value / 1e6:.4g} M'


def binary(value: float) -> str:
  """`1536` -> `'1.5 KiB'`."""
  unit = 0
  while value >= 1024 and unit < 5:
    value, unit = value / 1024, unit + 1
  return f'{value:.4g} {("B", "KiB", "MiB", "GiB", "TiB", "PiB")[unit]}'


def _count(devices: int) -> str:
  return f'{devices:,} device{"s" * (devices > 1)}'


def _int(value: float) -> str:
  return f'{round(value):,}'


def table(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
  """Aligned columns; the first row is a header over a rule."""
  widths = [max(map(len, column)) for column in zip(*rows)]
  lines = [
    '  '.join(
      c.ljust(w) if i in left else c.rjust(w)
      for i, (c, w) in enumerate(zip(row, widths))
    ).rstrip()
    for row in rows
  ]
  lines.insert(1, '-' * (sum(widths) + 2 * (len(widths) - 1)))
  return '\n'.join(lines)
