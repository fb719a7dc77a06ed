"""Figures of a routing page: numbers by layer beside their nulls, heat maps.

Letters: M layers, D domains, E experts, R rows and C columns of a heat map.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import (
  axes as mpl_axes,
  axis as mpl_axis,
  colors as mpl_colors,
  figure as mpl_figure,
  ticker,
)

from moe_jax.plots import style

_VALUE, _NULL = style.COLOURS[0], style.QUIET
# Orange is more than an even share, purple is less: as in the load's maps.
_MAP, _LIFT = 'PuOr_r', mpl_colors.LogNorm(0.25, 4.0)
_TICKS = (0.25, 0.5, 1.0, 2.0, 4.0)
PANELS = 6  # layers of a heat map


@dataclasses.dataclass(frozen=True)
class Panel:
  """A number by layer, or by pair of neighbours, where it has M - 1 values.

  Attributes:
    title: text.
    value: by layer; nan where it is not defined.
    null, null_low, null_high: what chance gives; low, high: an interval.
    other: further lines by name.
    scale: panels of one have the same axis.
  """

  title: str
  value: np.ndarray
  null: np.ndarray | None = None
  null_low: np.ndarray | None = None
  null_high: np.ndarray | None = None
  low: np.ndarray | None = None
  high: np.ndarray | None = None
  other: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  scale: str = ''


def by_layer(
  panels: Sequence[Panel], layers: Sequence[int]
) -> mpl_figure.Figure | None:
  """Lines with intervals, over grey bands of what chance gives."""
  if not panels:
    return None
  with style.house():
    columns = 2 if len(panels) in (1, 2, 4) else 3
    fig, axes = style.grid(len(panels), 2.5, columns)
    for ax, panel in zip(axes, panels, strict=True):
      _draw(ax, panel, np.asarray(layers, float))
    for scale in {p.scale for p in panels if p.scale}:
      of = [ax for ax, p in zip(axes, panels) if p.scale == scale]
      top = max(ax.get_ylim()[1] for ax in of)
      low = min(ax.get_ylim()[0] for ax in of)
      for ax in of:
        ax.set_ylim(low, top)
    handles = {}
    for ax in axes:
      found = zip(*ax.get_legend_handles_labels()[::-1], strict=True)
      handles |= {k: v for k, v in found if k not in handles}
    fig.legend(
      handles=list(handles.values()),
      labels=list(handles),
      loc='outside upper left',
      ncols=min(len(handles), 5),
    )
  return fig


def lift(
  count_MDE: np.ndarray, domains: Sequence[str], schema: Any
) -> mpl_figure.Figure | None:
  """Share of each expert in a domain's choices over its mean share."""
  if len(domains) < 2:
    return None
  lift_MDE = np.stack([lifts(count_DE) for count_DE in count_MDE])
  fig, bar = _by_expert(np.maximum(lift_MDE, 1e-6), domains, schema, _LIFT)
  bar.set_ticks(_TICKS, labels=[f'{t:g}x' for t in _TICKS])
  bar.minorticks_off()
  bar.set_label('over the mean')
  return fig


def cost(
  nats_MDE: np.ndarray, domains: Sequence[str], schema: Any
) -> mpl_figure.Figure:
  """What domains lose without an expert; nan where there is none."""
  most = np.nanquantile(np.abs(nats_MDE), 0.99) or 1.0
  norm = mpl_colors.Normalize(-most, most)
  fig, bar = _by_expert(nats_MDE, domains, schema, norm)
  bar.set_label('more loss, nats')
  return fig


def _by_expert(values_MDE, domains, schema, norm):
  """Heat maps of domains (rows) by experts (columns), and their scale.

  Experts stand by the domain that has most of them, these outside.
  """
  layers = some(len(values_MDE))
  columns = min(len(layers), 2)
  rows = math.ceil(len(layers) / columns)
  with style.house():
    fig = style.figure(10, rows * (0.24 * len(domains) + 1.0) + 0.3)
    axes = fig.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[len(layers) :]:
      ax.set_visible(False)
    for i, (ax, m) in enumerate(zip(axes, layers)):
      value_DE = values_MDE[m, :, : schema.experts[m]]
      known_DE = np.nan_to_num(value_DE, nan=-np.inf)
      order = np.lexsort((-known_DE.max(0), known_DE.argmax(0)))
      mesh = ax.pcolormesh(
        value_DE[:, order], norm=norm, cmap=_MAP, rasterized=True
      )
      ax.grid(False)
      ax.set_title(_layer(schema, m))
      ax.invert_yaxis()
      names = [style.plain(style.short(d, 18)) for d in domains]
      ax.set_yticks(np.arange(len(domains)) + 0.5, names)
      if i % columns:
        ax.set_yticklabels([])
      few = len(order) <= 40
      ticks = np.arange(len(order)) + 0.5 if few else []
      ax.set_xticks(ticks, [str(e) for e in order] if few else [])
      turned = {'labelsize': 7, 'rotation': 90} if len(order) > 20 else {}
      ax.tick_params(axis='x', **({'labelsize': 8} | turned))
      if i + columns >= len(layers):
        ax.set_xlabel('expert')
      ax.tick_params(length=0)
      for side in ax.spines.values():
        side.set_visible(False)
    bar = fig.colorbar(
      mesh, ax=list(axes), extend='both', pad=0.01, aspect=16, fraction=0.03
    )
    bar.outline.set_visible(False)
  return fig, bar


def lifts(count_DE: np.ndarray) -> np.ndarray:
  """f64 [D, E]: shares of domains' choices over their mean; 1 where none is."""
  share_DE = count_DE / np.maximum(count_DE.sum(1, keepdims=True), 1)
  mean_E = share_DE.mean(0)
  return np.where(mean_E > 0, share_DE / np.where(mean_E > 0, mean_E, 1), 1.0)


def heat(share_MEE: np.ndarray, schema: Any, label: str) -> mpl_figure.Figure:
  """A matrix of experts by experts of each of some layers; from white, 0."""
  layers = some(len(share_MEE))
  with style.house():
    columns = 4 if len(layers) == 4 else 3
    rows = math.ceil(len(layers) / columns)
    fig = style.figure(10, rows * (8.6 / columns) + 0.3)
    axes = fig.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[len(layers) :]:
      ax.set_visible(False)
    top = np.nanmax(share_MEE)
    norm = mpl_colors.Normalize(0, top if top > 0 else 1)
    blues = matplotlib.colormaps['Blues'].with_extremes(bad=_NULL)
    for i, (ax, m) in enumerate(zip(axes, layers)):
      E = schema.experts[m]
      # What an expert shares with itself says nothing.
      own_EE = np.where(np.eye(E, dtype=bool), np.nan, share_MEE[m, :E, :E])
      mesh = ax.pcolormesh(own_EE, norm=norm, cmap=blues, rasterized=True)
      ax.grid(False)
      ax.set_title(_layer(schema, m))
      ax.set_aspect('equal')
      ax.invert_yaxis()
      for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(ticker.MaxNLocator(6, integer=True))
        axis.set_major_formatter(lambda v, _: f'{v:.0f}')
      ax.set_xlabel('expert')
      if i % columns == 0:
        ax.set_ylabel('expert')
    bar = fig.colorbar(mesh, ax=list(axes), pad=0.01, aspect=20, fraction=0.03)
    bar.set_label(label)
    bar.outline.set_visible(False)
  return fig


@dataclasses.dataclass(frozen=True)
class Steps:
  """Lines over bins in order.

  Attributes:
    names: of the bins.
    lines: values by name; none, where there is nothing to draw.
    x_label, y_label: of the axes; '%' ends one of shares.
  """

  names: Sequence[str]
  lines: Mapping[str, np.ndarray]
  x_label: str
  y_label: str


def steps(drawn: Sequence[Steps]) -> mpl_figure.Figure | None:
  """Side by side, at most two in a row."""
  if not drawn:
    return None
  with style.house():
    fig, axes = style.grid(len(drawn), 2.6, 2)
    for ax, one in zip(axes, drawn, strict=True):
      known = np.isfinite(np.array(list(one.lines.values()), float)).any(0)
      names = [n for n, there in zip(one.names, known) if there]
      x = np.arange(len(names))
      for i, (name, values) in enumerate(one.lines.items()):
        ax.plot(x, np.asarray(values)[known], **_look(name, i), label=name)
      ax.set_xticks(x, names)
      ax.set_xlabel(one.x_label)
      ax.set_ylabel(one.y_label)
      _percent(ax.yaxis, one.y_label)
      top = ax.dataLim.y1
      ax.set_ylim(0, 1.06 * top if top > 0 else None)
    handles = axes[0].get_legend_handles_labels()
    fig.legend(*handles, loc='outside upper left', ncols=7)
  return fig


def dots(
  names: Sequence[str], lines: Mapping[str, Sequence[float]] | None, label: str
) -> mpl_figure.Figure | None:
  """A row a name, the largest first; those without a number are left out."""
  if not lines:
    return None
  first = np.asarray(next(iter(lines.values())), float)
  order = [i for i in np.argsort(-first, kind='stable') if first[i] == first[i]]
  if not order:
    return None
  with style.house():
    fig = style.figure(10, 0.28 * len(order) + 1.0)
    ax = fig.subplots()
    y = np.arange(len(order))
    for name, values in lines.items():
      look = _look(name) | {'linestyle': ''}
      ax.plot(np.asarray(values, float)[order], y, **look, label=name)
    ax.set_yticks(y, [style.plain(style.short(names[i])) for i in order])
    ax.set_ylim(len(order) - 0.5, -0.5)
    ax.set_xlim(0, 1.04 * ax.dataLim.x1 if ax.dataLim.x1 > 0 else None)
    ax.set_xlabel(label)
    _percent(ax.xaxis, label)
    fig.legend(loc='outside upper left', ncols=2)
  return fig


def _percent(axis: mpl_axis.Axis, label: str) -> None:
  """Shares whose label ends in '%' are printed as such."""
  if label.endswith('%'):
    axis.set_major_formatter(lambda v, _: f'{100 * v:.4g}')


def _look(name: str, i: int = 0) -> dict[str, Any]:
  if name == 'by chance':
    return {'color': _NULL, 'linestyle': '--', 'marker': 'o', 'markersize': 5}
  return style.look(i) | {'markersize': 7}


def _draw(ax: mpl_axes.Axes, panel: Panel, layer_M: np.ndarray) -> None:
  value = np.asarray(panel.value, float)
  pairs = len(value) == len(layer_M) - 1
  x = (layer_M[1:] + layer_M[:-1]) / 2 if pairs else layer_M
  if panel.null_low is not None and panel.null_high is not None:
    ax.fill_between(
      *(x, panel.null_low, panel.null_high),
      color=_NULL,
      alpha=0.35,
      linewidth=0,
    )
    if len(x) == 1:
      ends = [[v] for v in (panel.null_low[0], panel.null_high[0])]
      ax.vlines(x, *ends, color=_NULL, alpha=0.35, linewidth=10)
  if panel.null is not None:
    ax.plot(
      *(x, panel.null),
      color=_NULL,
      linestyle='--',
      marker='_' if len(x) < 3 else '',
      linewidth=1.3,
      label='by chance',
    )
  for i, (name, values) in enumerate(panel.other.items()):
    look = style.look(i + 1) | {'linestyle': ':'}
    ax.plot(x, values, **look, markersize=4, label=style.plain(name))
  if panel.low is not None and panel.high is not None:
    spread = np.maximum([value - panel.low, panel.high - value], 0)
    ax.errorbar(
      *(x, value, spread), color=_VALUE, fmt='none', elinewidth=1.2, capsize=2
    )
  ax.plot(
    *(x, value),
    color=_VALUE,
    marker='o',
    markersize=5 if len(x) <= 16 else 3,
    label='measured',
  )
  ax.set_title(style.plain(panel.title), fontsize=10)
  _percent(ax.yaxis, panel.title)
  ax.set_xlabel('from layer to layer' if pairs else 'layer')
  if len(layer_M) > 12:
    ax.xaxis.set_major_locator(ticker.MaxNLocator(8, integer=True))
  elif pairs:
    both = itertools.pairwise(layer_M)
    ax.set_xticks(x, [f'{a:g} to {b:g}' for a, b in both])
  else:
    ax.set_xticks(x, [f'{v:g}' for v in layer_M])
  room = max(0.5, 0.04 * (layer_M[-1] - layer_M[0]))
  ax.set_xlim(layer_M[0] - room, layer_M[-1] + room)
  low, high = ax.dataLim.intervaly
  ax.set_ylim(1.06 * min(low, 0), 1.06 * high if high > 0 else None)


def some(M: int) -> list[int]:
  """Up to `PANELS` layers, evenly from first to last."""
  return sorted({round(v) for v in np.linspace(0, M - 1, min(M, PANELS))})


def _layer(schema: Any, m: int) -> str:
  return f'Layer {schema.layers[m]}'
