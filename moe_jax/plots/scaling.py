"""How the cost of the layer grows as the work grows."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import figure as mpl_figure

from moe_jax.errors import UserError
from moe_jax.plots import style


def scaling(record: Mapping[str, Any]) -> mpl_figure.Figure:
  """Time against each size that varies, one panel each; medians, quartiles.

  Args:
    record: of bench.json with rows of suite scaling.

  Raises:
    ValueError: no such rows.
  """
  rows = [r for r in record['rows'] if r['suite'] == 'scaling']
  if not rows:
    raise UserError('bench.json has no rows of suite scaling')
  axes_found = list(dict.fromkeys(r['sizes']['axis'] for r in rows))
  names = list(dict.fromkeys(n for r in rows for n in r['candidates']))
  columns = 2 if len(axes_found) > 1 else 1
  with style.house():
    fig, axes = style.grid(len(axes_found), 2.9, columns)
    for i, (ax, varied) in enumerate(zip(axes, axes_found)):
      mine = [r for r in rows if r['sizes']['axis'] == varied]
      for j, name in enumerate(names):
        points = [
          (r['sizes']['value'], *_milliseconds(r['candidates'][name]))
          for r in mine
          if name in r['candidates']
        ]
        if points:
          x, median, low, high = np.array(points).T
          look = style.look(j)
          ax.plot(x, median, **look, markersize=4)
          ax.fill_between(x, low, high, color=look['color'], alpha=0.2)
      ax.set_xscale('log', base=2)
      ax.set_yscale('log', base=2)
      values = sorted({r['sizes']['value'] for r in mine})
      ax.set_xticks(values, labels=[f'{v:g}' for v in values])
      ax.set_xlabel(_LABELS.get(varied, varied))
      ax.yaxis.set_major_formatter(lambda v, _: f'{v:g}')
      if i % columns == 0:
        ax.set_ylabel('ms, forward and backward')
    style.legend(fig, names)
  return fig


_LABELS = {
  'E': 'experts E',
  'K': 'experts per token K',
  'T': 'tokens T',
  'capacity factor': 'capacity factor',
}


def _milliseconds(candidate: Mapping[str, Any]) -> tuple[float, float, float]:
  s = candidate['seconds']
  return 1e3 * s['median'], 1e3 * s['low'], 1e3 * s['high']
