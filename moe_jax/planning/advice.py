"""Which dispatch to take, by what each would cost."""

from collections.abc import Mapping
from typing import Any

from moe_jax.planning import layers, report

# Of the rows computed: above it sorted rows are worth their bookkeeping.
_EMPTY = 0.3
# A gather of all tokens may hold this much more than the smallest dispatch.
_MORE = 2.0


def recommend(
  layer: layers.Layer, figures: Mapping[str, Mapping[str, Any]], cpu: bool
) -> tuple[str, str]:
  """An algorithm, and why, in a sentence or two.

  `einsum` is never it: `scatter` moves and computes the same rows without the
  products of its masks.

  Args:
    layer: whose.
    figures: by algorithm, as `training.plans.compare` returns them.
    cpu: whether the ragged exchange is emulated.
  """
  S, K = layer.axis, layer.choices
  empty = figures['scatter']['empty']
  size = lambda name: report.binary(figures[name]['peak']['held'])
  waste = f'scatter would compute {100 * empty:.0f} % of its rows for no token'
  if S == 1:
    return 'gather_reduce', (
      'An expert axis of size 1 exchanges nothing, and sorted rows have no '
      f'padding, while {waste}.'
    )
  names = ['scatter', 'gather_reduce']
  names += [] if cpu else ['ragged_all_to_all']
  wire = {n: figures[n]['wire']['leaving_per_device'] for n in names}
  peak = {n: figures[n]['peak']['held'] for n in names}
  moved = ', '.join(f'{report.binary(v)} by {n}' for n, v in wire.items())
  gathered = wire['gather_reduce'] == min(wire.values())
  if gathered and peak['gather_reduce'] <= _MORE * min(peak.values()):
    return 'gather_reduce', (
      f'Gathering tokens moves least where the expert axis is narrow (S = {S}, '
      f'K = {K:g}): a device and step send {moved}.'
    )
  if empty <= _EMPTY:
    return 'scatter', (
      f'At this capacity only {100 * empty:.0f} % of its rows hold no token; '
      f'its buffers of {size("scatter")} a layer are the same at any loads, '
      'and no receiver can overflow.'
    )
  if cpu:
    return 'gather_reduce', (
      f'On CPU a ragged exchange gathers all rows, and {waste}.'
    )
  ragged = figures['ragged_all_to_all']
  text = f'It sends and computes only rows that hold a token; {waste}'
  if peak['scatter'] > 1.1 * ragged['peak']['held']:
    text += f', and hold {size("scatter")} a layer in place of '
    text += size('ragged_all_to_all')
  text += '.'
  if ragged['clipped'] and ragged['options']['overflow'] == 'drop':
    text += (
      f' Its buffer clips {100 * ragged["clipped"]:.2g} % of the rows here: '
      f'buffer_factor={ragged["buffer_factor"] + 0.05:.1f} holds them, or '
      "overflow='gather_reduce'."
    )
  return 'ragged_all_to_all', text
