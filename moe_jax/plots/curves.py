"""Curves over the steps of one run, or of several laid over each other."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import axes as mpl_axes, figure as mpl_figure, ticker

from moe_jax.plots import records, style


@dataclasses.dataclass(frozen=True)
class _Panel:
  """A small panel; it is left out where no run has the key.

  Attributes:
    key: of the metrics.
    title: what is seen.
    unit: of the vertical axis, after the values were multiplied by `scale`.
    axis: 'zero' begins at 0, 'free' fits, 'log' is for values over decades.
    smooth: False for what has no noise, whose corners a mean would round.
    level: (value, name) of a line to compare with.
  """

  key: str
  title: str
  unit: str
  scale: float = 1.0
  axis: str = 'zero'
  smooth: bool = True
  level: tuple[float, str] | None = None


_ROUTING = (
  _Panel('moe/dropped', 'Dropped assignments', '% of assignments', 100.0),
  _Panel(
    'moe/load_max',
    'Busiest expert',
    'load over mean load',
    axis='free',
    level=(1.0, 'balanced'),
  ),
  _Panel('router/entropy', 'Router entropy', 'nats per token', axis='free'),
)
_OPTIMIZATION = (
  _Panel('learning_rate', 'Learning rate', 'learning rate', smooth=False),
  _Panel('grad_norm', 'Gradient norm', 'global norm', axis='log'),
  _Panel('tokens_per_second', 'Throughput', 'tokens per second'),
)


def loss(runs: Sequence[records.Run]) -> mpl_figure.Figure | None:
  """Training loss and held-out bits per byte or scores, side by side."""
  has_eval = any(r.keys(records.BITS) for r in runs)
  has_loss = any(r.keys('loss') for r in runs)
  scores = [
    s
    for s in records.scores([r.summary for r in runs])
    if any(r.keys(re.escape(s['key'])) for r in runs)
  ]
  panels = has_loss + has_eval + len(scores)
  if not panels:
    return None
  with style.house():
    fig = style.figure(10, 3.8)
    axes = list(fig.subplots(1, panels, squeeze=False)[0])
    if has_loss:
      draw_loss(axes[0], runs)
    if has_eval:
      draw_held_out(axes[has_loss], runs)
    for ax, score in zip(axes[has_loss + has_eval :], scores):
      draw_score(ax, runs, score)
    if len(runs) > 1:
      style.legend(fig, [r.name for r in runs])
  return fig


def draw_loss(ax: mpl_axes.Axes, runs: Sequence[records.Run]) -> None:
  """Loss of each log step, and its running mean where it is long."""
  _lines(ax, runs, 'loss')
  ax.set_title('Training loss')
  ax.set_ylabel(records.problem(runs[0].summary)['loss_unit'])


def draw_held_out(ax: mpl_axes.Axes, runs: Sequence[records.Run]) -> None:
  """Bits per byte at each evaluation; one run shows its domains, too."""
  if len(runs) == 1:
    run = runs[0]
    pattern = r'eval/(?:[^/]+/)?bits_per_byte'
    keys = [k for k in run.keys(pattern) if len(run.series(k)[0])]
    # Highest line first, so that the legend reads in the order of the lines.
    keys.sort(key=lambda k: -np.nan_to_num(run.series(k)[1][-1]))
    colours = iter(style.COLOURS * len(keys))
    for k in keys:
      overall = k == 'eval/bits_per_byte'
      label = 'overall' if overall else k.split('/')[1]
      ax.plot(
        *run.series(k),
        label=style.plain(style.short(label)),
        color=style.INK if overall else next(colours),
        linewidth=2.4 if overall else 1.4,
        marker='o',
        markersize=5 if overall else 3.5,
        zorder=3 if overall else 2,
      )
    floor = records.number(run.summary, 'eval/bigram_bits_per_byte')
    if not math.isnan(floor):
      ax.axhline(
        floor, color=style.QUIET, linestyle='--', label='bigram, overall'
      )
    ax.legend(
      loc='upper left', bbox_to_anchor=(1, 1.02), handlelength=1.4, borderpad=0
    )
  else:
    for i, run in enumerate(runs):
      ax.plot(
        *run.series('eval/bits_per_byte'), **style.look(i), markersize=4.5
      )
  _steps(ax, runs)
  ax.set_title('Held-out bits per byte')
  ax.set_ylabel('bits per byte (lower is better)')


def draw_score(
  ax: mpl_axes.Axes, runs: Sequence[records.Run], score: Mapping[str, Any]
) -> None:
  """A score at each evaluation, and what a model must beat."""
  scale = records.scale(score)
  _lines(ax, runs, score['key'], scale, smooth=False)
  floors = [r.series(score['floor'])[1] for r in runs]
  floors += [[records.number(r.summary, score['floor'])] for r in runs]
  floors = [v[-1] for v in floors if len(v) and math.isfinite(v[-1])]
  dashed = f' (dashed: {score["floor_label"]})' if floors else ''
  for floor in floors[-1:]:
    ax.axhline(scale * floor, color=style.QUIET, linestyle='--')
  ax.set_title(style.plain(f'Held-out {score["label"]}'))
  ax.set_ylabel(style.plain(f'{score["unit"] or score["label"]}{dashed}'))


def routing(runs: Sequence[records.Run]) -> mpl_figure.Figure | None:
  """Drops, the busiest expert, router entropy and each balancing rule."""
  rules = dict.fromkeys(k for r in runs for k in r.keys('balance/.+'))
  panels = [
    _Panel(
      k, f'Balance: {style.short(k[8:], 18)}', 'loss, unweighted', axis='free'
    )
    for k in rules
  ]
  return _panels(runs, (*_ROUTING, *panels))


def optimization(runs: Sequence[records.Run]) -> mpl_figure.Figure | None:
  """Learning rate, gradient norm and tokens per second."""
  return _panels(runs, _OPTIMIZATION)


def _panels(runs, panels) -> mpl_figure.Figure | None:
  panels = [p for p in panels if any(r.keys(re.escape(p.key)) for r in runs)]
  if not panels:
    return None
  with style.house():
    fig, axes = style.grid(len(panels), 2.4)
    for ax, panel in zip(axes, panels):
      _lines(ax, runs, panel.key, panel.scale, panel.smooth)
      ax.set_title(style.plain(panel.title))
      ax.set_ylabel(panel.unit)
      _vertical(ax, runs, panel)
    if len(runs) > 1:
      style.legend(fig, [r.name for r in runs])
  return fig


def _vertical(ax, runs, panel) -> None:
  values = np.concatenate([r.series(panel.key)[1] for r in runs])
  # No logarithm of a norm of 0, nor of no number at all.
  if panel.axis == 'log' and 0 < np.nanmin(values, initial=np.inf) < np.inf:
    ax.set_yscale('log')
    ax.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_minor_formatter(lambda v, _: '')
  elif panel.axis == 'free':
    ax.margins(y=0.15)
  else:
    ax.set_ylim(bottom=0)
  if panel.axis != 'free':
    # Not Matplotlib's powers of ten, which are mathematics in the SVG.
    ax.yaxis.set_major_formatter(lambda v, _: style.si(v))
  if panel.level:
    level, name = panel.level
    ax.axhline(level, color=style.QUIET, linestyle='--', linewidth=1)
    if len(runs) == 1:  # among the lines of several there is no room
      ax.text(
        0.99,
        level,
        name,
        transform=ax.get_yaxis_transform(),
        ha='right',
        va='bottom',
        fontsize=8,
        color=style.QUIET,
      )


def _lines(ax, runs, key, scale=1.0, smooth=True) -> None:
  for i, run in enumerate(runs):
    steps, values = style.thin(*run.series(key))
    if not len(steps):
      continue
    look = style.look(i)
    window = len(steps) // 30
    if window > 1 and smooth:
      ax.plot(
        steps, scale * values, color=look['color'], linewidth=0.8, alpha=0.35
      )
      mean = style.running_mean(values, window)
      ax.plot(steps, scale * mean, **{**look, 'marker': ''})
    else:
      if len(steps) > 12:
        look['marker'] = ''
      ax.plot(steps, scale * values, **look, markersize=4)
  _steps(ax, runs)


def _steps(ax, runs) -> None:
  first = min(r.rows[0]['step'] for r in runs)
  style.steps_axis(ax, first, max(r.last_step for r in runs))
