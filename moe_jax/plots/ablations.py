"""Figures of a study in the papers' form, published numbers beside ours.

A figure is a dict of a study file: 'file', 'kind', 'title', 'x' and 'y' (labels
of the axes), 'metric', 'series' {label: ((x, arm[, metric]), ...)}, 'published'
{label: ((x, value), ...)}. Kinds: 'lines' over numbers, 'bars' over names,
'curves' of the training loss, whose series are {label: arm}, and 'dots': a row
for each arm (series {label: arm}), a panel for each of 'columns' ((metric,
label), ...), the first of which sorts the rows; 'apart' {label: why} are drawn
hollow, and told below.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import figure as mpl_figure

from moe_jax.errors import UserError
from moe_jax.plots import style

Point = tuple[float, float, float]  # mean, low, high
Curve = tuple[Sequence[float], Sequence[float]]


def draw(
  spec: Mapping[str, Any],
  value: Callable[[str, str], Point | None],
  curve: Callable[[str], Curve | None],
) -> mpl_figure.Figure:
  """One figure; what has not been run is left out.

  Args:
    spec: of a study's FIGURES.
    value: (metric, arm) -> mean and interval over the seeds, or None.
    curve: arm -> steps and mean losses, or None.

  Raises:
    ValueError: an unknown kind.
  """
  drawn = {'lines': _lines, 'bars': _bars, 'curves': _curves}
  if spec['kind'] not in {'dots', *drawn}:
    raise UserError(
      f'figure kind {spec["kind"]!r}; valid: '
      f'{", ".join(sorted({"dots", *drawn}))}'
    )
  if spec['kind'] == 'dots':
    return _dots(spec, value)
  if spec['kind'] == 'curves':
    found = {k: curve(arm) for k, arm in spec['series'].items()}
  else:
    found = {
      label: [
        (p[0], value(p[2] if len(p) > 2 else spec['metric'], p[1]))
        for p in points
      ]
      for label, points in spec['series'].items()
    }
  published = spec.get('published') or {}
  with style.house():
    fig = style.figure(10, 4.1)
    axes = fig.subplots(1, 1 + bool(published), squeeze=False)[0]
    if published:
      theirs = {
        label: [(x, (v, v, v)) for x, v in published.get(label, ())]
        for label in spec['series']
      }
      drawn[spec['kind']](axes[0], theirs, spec)
      axes[0].set_title('published')
    drawn[spec['kind']](axes[-1], found, spec)
    curves = spec['kind'] == 'curves'
    axes[-1].set_title(
      'here: mean of the seeds' if curves else 'here: mean, 95 % interval'
    )
    if published and spec['kind'] == 'lines':
      limits = [ax.get_xlim() for ax in axes]
      low, high = min(v[0] for v in limits), max(v[1] for v in limits)
      for ax in axes:
        ax.set_xlim(low, high)
    for ax in axes:
      ax.set_xlabel(spec.get('x', ''))
      ax.set_ylabel(spec['y'])
    fig.suptitle(spec['title'], x=0.01, ha='left', weight='bold')
    fig.legend(
      *_handles(axes), loc='outside lower left', ncols=min(len(found), 4)
    )
  return fig


def _handles(axes):
  by_label = {}
  for ax in axes:
    for handle, label in zip(*ax.get_legend_handles_labels()):
      by_label.setdefault(label, handle)
  return list(by_label.values()), list(by_label)


def _lines(ax, series, spec) -> None:
  for i, (label, points) in enumerate(series.items()):
    points = [(x, p) for x, p in points if p is not None]
    if not points:
      continue
    x = [v for v, _ in points]
    mean, low, high = np.array([p for _, p in points]).T
    look = style.look(i)
    ax.plot(x, mean, **look, markersize=4.5, label=style.plain(label))
    ax.fill_between(x, low, high, color=look['color'], alpha=0.15, linewidth=0)
  if spec.get('log_x'):
    ax.set_xscale('log', base=2)
    ax.xaxis.set_major_formatter(lambda v, _: f'{v:g}')
  ax.margins(y=0.12)


def _bars(ax, series, spec) -> None:
  names = list(
    dict.fromkeys(p[0] for points in spec['series'].values() for p in points)
  )
  width, lows = 0.8 / max(len(series), 1), []
  for i, (label, points) in enumerate(series.items()):
    points = [(x, p) for x, p in points if p is not None]
    if not points:
      continue
    at = [
      names.index(x) + (i - (len(series) - 1) / 2) * width for x, _ in points
    ]
    mean, low, high = np.array([p for _, p in points]).T
    lows += list(low)
    ax.bar(
      at,
      mean,
      0.9 * width,
      yerr=[mean - low, high - mean],
      color=style.look(i)['color'],
      error_kw={'elinewidth': 1, 'ecolor': style.INK},
      label=style.plain(label),
    )
  long = max(map(len, names), default=0) > 8
  ax.set_xticks(
    range(len(names)),
    labels=names,
    rotation=30 if long else 0,
    ha='right' if long else 'center',
  )
  ax.grid(axis='x', visible=False)
  if spec.get('zoom') and lows:
    # Differences of a few hundredths between bars of two: not from zero.
    top = ax.get_ylim()[1]
    ax.set_ylim(min(lows) - 0.5 * (top - min(lows)), top)


def _curves(ax, series, spec) -> None:
  del spec
  for i, (label, found) in enumerate(series.items()):
    if not found:
      continue
    if isinstance(found, list):  # published, a point at the end each
      continue
    look = {**style.look(i), 'marker': ''}
    ax.plot(*found, **look, label=style.plain(label))


def _dots(spec, value) -> mpl_figure.Figure:
  """The best row on top; arms without the first metric are left out."""
  columns, apart = spec['columns'], spec.get('apart') or {}
  rows = {k: value(columns[0][0], arm) for k, arm in spec['series'].items()}
  rows = {k: v for k, v in rows.items() if v is not None}
  names = sorted(rows, key=lambda k: rows[k][0], reverse=True)
  with style.house():
    fig = style.figure(11, 1.4 + 0.2 * max(len(names), 4))
    axes = fig.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for ax, (metric, label) in zip(axes, columns):
      for at, name in enumerate(names):
        point = value(metric, spec['series'][name])
        if point is None:
          continue
        mean, low, high = point
        colour = style.COLOURS[0]
        ax.plot([low, high], [at, at], color=colour, linewidth=1.2)
        inside = 'white' if name in apart else colour
        ax.plot(
          mean, at, 'o', color=colour, markerfacecolor=inside, markersize=4.5
        )
      ax.set_xlabel(label)
      ax.margins(x=0.08)
    axes[0].set_yticks(range(len(names)), labels=map(style.plain, names))
    fig.suptitle(spec['title'], x=0.01, ha='left', weight='bold')
    told = [f'{name}, hollow: {why}' for name, why in apart.items()]
    fig.supxlabel(
      '; '.join(['mean of the seeds, 95 % interval', *told]), fontsize=9
    )
  return fig
