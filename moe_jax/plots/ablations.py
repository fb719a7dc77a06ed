"""Figures of a study in the papers' form, published numbers beside ours.

A figure is a dict of a study file: 'file', 'kind', 'title', 'x' and 'y' (labels
of the axes), 'metric', 'series' {label: ((x, arm[, metric]), ...)}, 'published'
{label: ((x, value), ...)}; 'log_x' and 'log_y' where wanted. Kinds: 'lines'
over numbers, 'points' over names, 'curves' of the training loss, whose series
are {label: arm}, and 'dots': a row for each arm (series {label: arm}), a panel
for each of 'columns' ((metric, label), ...), the first of which sorts the rows;
'apart' {label: why} are drawn hollow, and told below.

Axes fit the data, and say so where they do not hold 0: what methods differ by
is small beside what they share. That is why no kind draws bars.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import figure as mpl_figure, ticker

from moe_jax.errors import UserError
from moe_jax.plots import style

Point = tuple[float, float, float]  # mean, low, high
Curve = tuple[Sequence[float], Sequence[float]]

_FALL = 0.2  # of the steps: what all curves fall by hides what parts them


def draw(
  spec: Mapping[str, Any],
  value: Callable[[str, str], Point | None],
  curve: Callable[[str], Curve | None],
) -> mpl_figure.Figure:
  """One figure; what has not been run is left out.

  Args:
    spec: of a study's FIGURES.
    value: (metric, arm) -> mean and its interval, or None.
    curve: arm -> steps and mean losses, or None.

  Raises:
    ValueError: an unknown kind.
  """
  drawn = {'lines': _lines, 'points': _points, 'curves': _curves}
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
    drawn[spec['kind']](axes[-1], found, spec)
    if published and spec['kind'] == 'lines':
      limits = [ax.get_xlim() for ax in axes]
      low, high = min(v[0] for v in limits), max(v[1] for v in limits)
      for ax in axes:
        ax.set_xlim(low, high)
    here = 'here: mean, 95 % interval'
    if spec['kind'] == 'curves':
      here = f'here: mean of the runs, after the first {_FALL:.0%} of the steps'
    for ax, said in zip(axes, ['published', here][-len(axes) :]):
      ax.set_title(said + _fit(ax, spec), wrap=True)
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


def _fit(ax, spec) -> str:
  """Limits the vertical axis to the data; what to say of it."""
  if spec.get('log_y'):
    ax.set_yscale('log')
    ax.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(lambda v, _: f'{v:g}')
    ax.yaxis.set_minor_formatter(ticker.NullFormatter())
    return ''
  ax.margins(y=0.08)
  low, high = ax.get_ylim()
  cut = ''
  if spec['kind'] == 'lines' and ax.lines:
    # The interval of two seeds can be ten times as high as all there is to see.
    means = np.concatenate([line.get_ydata() for line in ax.lines])
    room = np.ptp(means) / 2 or high - low
    bottom, top = means.min() - room, means.max() + room
    if bottom > ax.dataLim.y0 or top < ax.dataLim.y1:
      low, high = ax.set_ylim(max(low, bottom), min(high, top))
      cut = ', intervals cut'
  ax.yaxis.set_major_formatter(
    lambda v, _: style.si(v) if high >= 1e4 else f'{round(v, 9):g}'
  )
  return cut if low <= 0 <= high else f'{cut} (axis without 0)'


def _lines(ax, series, spec) -> None:
  for i, (label, points) in enumerate(series.items()):
    points = [(x, p) for x, p in points if p is not None]
    if not points:
      continue
    x = [v for v, _ in points]
    mean, low, high = np.array([p for _, p in points]).T
    look = style.look(i)
    ax.plot(x, mean, **look, markersize=4.5, label=style.plain(label))
    band = {'color': look['color'], 'alpha': 0.15, 'linewidth': 0}
    ax.fill_between(x, low, high, **band)
    if len(x) == 1:  # where a band has no width
      ax.vlines(x, low, high, color=look['color'])
  if spec.get('log_x'):
    ax.set_xscale('log', base=2)
    ax.xaxis.set_major_formatter(lambda v, _: f'{v:g}')


def _points(ax, series, spec) -> None:
  """Over names; the series of a name stand side by side."""
  names = list(
    dict.fromkeys(p[0] for points in spec['series'].values() for p in points)
  )
  width = 0.5 / len(series)
  for i, (label, points) in enumerate(series.items()):
    points = [(x, p) for x, p in points if p is not None]
    if not points:
      continue
    at = [
      names.index(x) + (i - (len(series) - 1) / 2) * width for x, _ in points
    ]
    mean, low, high = np.array([p for _, p in points]).T
    if spec.get('log_y'):
      low = np.maximum(low, mean / 10)  # an interval of a mean may go below 0
    ax.errorbar(
      at,
      mean,
      [mean - low, high - mean],
      **style.look(i) | {'linestyle': ''},
      markersize=6,
      elinewidth=1.4,
      label=style.plain(label),
    )
  letters = sum(map(len, names)) + 2 * len(names)
  long = letters > (50 if spec.get('published') else 110)
  ax.set_xticks(
    range(len(names)),
    labels=names,
    rotation=30 if long else 0,
    ha='right' if long else 'center',
  )
  ax.set_xlim(-0.5, len(names) - 0.5)
  ax.grid(axis='x', visible=False)


def _curves(ax, series, spec) -> None:
  del spec
  for i, (label, found) in enumerate(series.items()):
    if not found:
      continue
    steps, losses = map(np.asarray, found)
    after = steps > _FALL * steps[-1]
    look = style.look(i) | {'marker': ''}
    ax.plot(steps[after], losses[after], **look, label=style.plain(label))


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
    axes[0].set_ylim(-0.7, len(names) - 0.3)
    fig.suptitle(spec['title'], x=0.01, ha='left', weight='bold')
    told = [f'{name}, hollow: {why}' for name, why in apart.items()]
    fig.supxlabel('; '.join(['mean, 95 % interval', *told]), fontsize=9)
  return fig
