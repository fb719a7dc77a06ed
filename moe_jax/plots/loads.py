"""How the work is spread over the experts."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib import (
  axes as mpl_axes,
  colors as mpl_colors,
  figure as mpl_figure,
  ticker,
)

from moe_jax.plots import records, style

# Purple is idle, orange is busy, white is balanced: told apart with any colour
# vision. A quarter to four times the mean covers all but collapsed routers.
_MAP = 'PuOr_r'
_NORM = mpl_colors.LogNorm(0.25, 4.0)
_TICKS = (0.25, 0.5, 1.0, 2.0, 4.0)


def over_time(run: records.Run) -> mpl_figure.Figure | None:
  """Heat map of expert by step, one panel a MoE layer, and the last tenth."""
  steps, loads = run.loads()
  if not loads:
    return None
  columns = 2 if len(loads) in (2, 4) else min(len(loads), 3)
  rows = math.ceil(len(loads) / columns)
  most = max(v.shape[1] for v in loads.values())
  height = rows * (min(max(0.09 * most, 1.5), 2.4) + 0.5) + 0.3
  with style.house():
    fig = style.figure(10, height)
    axes = fig.subplots(
      rows, 2 * columns, squeeze=False, width_ratios=[5, 1] * columns
    )
    pairs = axes.reshape(-1, 2)
    for ax in pairs[len(loads) :].ravel():
      ax.set_visible(False)
    for i, (layer, load_SE) in enumerate(loads.items()):
      heat, bars = pairs[i]
      mesh = draw_heat(heat, steps, load_SE, f'Layer {layer}')
      draw_bars(bars, load_SE, 'end' if columns == 3 else 'at the end')
      if i + columns < len(loads):
        heat.set_xlabel('')
      if i % columns:
        heat.set_ylabel('')
    add_scale(fig, mesh, list(axes.ravel()), height)
  return fig


def ranked(runs: Sequence[records.Run]) -> mpl_figure.Figure | None:
  """Loads of the last tenth, busiest expert first, one panel a MoE layer."""
  tails = [{k: _tail(v) for k, v in r.loads()[1].items()} for r in runs]
  layers = sorted({layer for t in tails for layer in t})
  if not layers:
    return None
  top = max(v.max() for t in tails for v in t.values())
  with style.house():
    fig, axes = style.grid(len(layers), 2.3)
    for ax, layer in zip(axes, layers):
      ax.axhline(1.0, color=style.QUIET, linestyle='--', linewidth=1)
      for i, tail in enumerate(tails):
        if layer in tail:
          load_E = np.sort(tail[layer])[::-1]
          share_E = (np.arange(len(load_E)) + 0.5) / len(load_E)
          look = style.look(i)
          if len(load_E) > 16:
            look['marker'] = ''
          ax.plot(100 * share_E, load_E, **look, markersize=4)
      ax.set_title(f'Layer {layer}')
      ax.set_xlabel('% of experts, busiest first')
      ax.set_xlim(0, 100)
      ax.set_ylim(0, max(2.0, 1.05 * top))
    for ax in axes[::3]:
      ax.set_ylabel('load over mean load')
    style.legend(fig, [r.name for r in runs])
  return fig


def draw_heat(
  ax: mpl_axes.Axes, steps: np.ndarray, load_SE: np.ndarray, title: str
):
  """The load of each expert (rows) at each log step (columns)."""
  busiest = _tail(load_SE).max()
  steps, load_SE = style.thin(steps, load_SE, 400)
  # A column reaches halfway to its neighbours.
  middle = (steps[1:] + steps[:-1]) / 2
  ends = [steps[0] - 0.5], [steps[0] + 0.5]
  if len(steps) > 1:
    ends = [2 * steps[0] - middle[0]], [2 * steps[-1] - middle[-1]]
  edges = np.concatenate([ends[0], middle, ends[1]])
  experts = np.arange(load_SE.shape[1] + 1) - 0.5
  mesh = ax.pcolormesh(
    edges,
    experts,
    # An idle expert has no logarithm: it takes the colour below the scale.
    np.maximum(load_SE.T, 1e-6),
    norm=_NORM,
    cmap=_MAP,
    rasterized=True,
  )
  ax.grid(False)
  ax.set_title(title)
  ax.set_title(
    f'busiest {busiest:.2f}x',
    loc='right',
    fontsize=9,
    fontweight='normal',
  )
  ax.set_ylabel('expert')
  ax.invert_yaxis()
  ax.yaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
  style.steps_axis(ax, steps[0], steps[-1])
  ax.set_xlim(edges[0], edges[-1])
  return mesh


def draw_bars(ax: mpl_axes.Axes, load_SE: np.ndarray, title: str) -> None:
  """The mean load of each expert over the last tenth of the log steps."""
  tail_E = _tail(load_SE)
  edges = np.arange(len(tail_E) + 1) - 0.5
  ax.stairs(
    tail_E,
    edges,
    orientation='horizontal',
    fill=True,
    color=style.QUIET,
    alpha=0.6,
  )
  ax.axvline(1.0, color=style.INK, linestyle='--', linewidth=1)
  ax.set_ylim(len(tail_E) - 0.5, -0.5)
  ax.set_xlim(0, max(2.0, 1.05 * tail_E.max()))
  ax.set_yticks([])
  ax.set_title(title, fontsize=9, fontweight='normal')
  ax.xaxis.set_major_locator(ticker.MaxNLocator(2, integer=True))
  ax.xaxis.set_major_formatter(lambda v, _: f'{v:g}x')


def add_scale(
  fig: mpl_figure.FigureBase, mesh, axes: list, height: float
) -> None:
  """The colours' key beside `axes`, which are `height` inches high."""
  bar = fig.colorbar(
    mesh,
    ax=axes,
    extend='both',
    pad=0.01,
    aspect=22,
    shrink=min(1.0, 2.4 / height),
    anchor=(0.0, 1.0),
  )
  bar.set_ticks(_TICKS, labels=[f'{v:g}x' for v in _TICKS])
  bar.minorticks_off()
  bar.set_label('load over mean load')
  bar.outline.set_visible(False)


def _tail(load_SE: np.ndarray) -> np.ndarray:
  return load_SE[-max(1, len(load_SE) // 10) :].mean(axis=0)
