"""Bits per byte of each domain, with intervals, beside the bigram floor."""

from collections.abc import Sequence

import numpy as np
from matplotlib import axes as mpl_axes, figure as mpl_figure

from moe_jax.plots import records, style


def bits_per_byte(runs: Sequence[records.Run]) -> mpl_figure.Figure | None:
  """Dots with 95 % intervals, a row a domain; a tick is the bigram model."""
  names = _names(runs)
  if not names:
    return None
  with style.house():
    row = 0.3 + 0.14 * len(runs)
    fig = style.figure(10, row * len(names) + 1.0 + 0.3 * (len(runs) > 1))
    draw(fig.subplots(), runs)
    if len(runs) > 1:
      style.legend(fig, [r.name for r in runs])
  return fig


def draw(ax: mpl_axes.Axes, runs: Sequence[records.Run]) -> None:
  """The dots of one axis."""
  names = _names(runs)
  for y, name in enumerate(names):
    floors = [values(r.summary, name)[3] for r in runs]
    floor = next((v for v in floors if np.isfinite(v)), np.nan)
    ax.plot([floor] * 2, [y - 0.32, y + 0.32], color=style.QUIET, linewidth=2.5)
    if y == 0 and np.isfinite(floor):
      _note(ax, 'bigram', (floor, -0.32), 2, style.QUIET)
  for i, run in enumerate(runs):
    # The runs of a domain stand under each other, in the legend's order.
    offset = 0.0 if len(runs) == 1 else (i / (len(runs) - 1) - 0.5) * 0.5
    look = style.look(i)
    for y, name in enumerate(names):
      point, low, high, _ = values(run.summary, name)
      ax.plot(
        [low, high],
        [y + offset] * 2,
        color=look['color'],
        linewidth=4,
        alpha=0.35,
        solid_capstyle='butt',
      )
      ax.plot(point, y + offset, **{**look, 'linestyle': ''}, markersize=5.5)
      if len(runs) == 1 and np.isfinite(point):
        _note(ax, f'{point:.3f}', (point, y), 6, style.INK)
  ax.set_yticks(
    range(len(names)),
    labels=[style.plain(style.short(n or 'overall', 24)) for n in names],
  )
  ax.set_ylim(len(names) - 0.5, -0.75)
  ax.grid(False, axis='y')
  if len(names) > 1 and not names[-1]:
    ax.axhline(len(names) - 1.5, color=style.GRID, linewidth=0.8)
  ax.margins(x=0.08)
  ax.set_xlabel('bits per byte (lower is better; bars are 95 % intervals)')
  ax.set_title('Held-out bits per byte, by domain')


def values(summary: dict, domain: str) -> tuple[float, float, float, float]:
  """Bits per byte, its 95 % interval's ends, and the bigram model's.

  `''` is all domains together; nan is what the summary lacks.
  """
  prefix = f'eval/{domain}/' if domain else 'eval/'
  keys = (
    'bits_per_byte', 'bits_per_byte_low', 'bits_per_byte_high',
    'bigram_bits_per_byte',
  )  # fmt: skip
  return tuple(records.number(summary, prefix + k) for k in keys)


def _note(ax, text, at, above, colour) -> None:
  ax.annotate(
    text,
    at,
    xytext=(0, above),
    textcoords='offset points',
    ha='center',
    va='bottom',
    fontsize=8,
    color=colour,
  )


def _names(runs) -> list[str]:
  names = [d for r in runs for d in records.domains(r.summary)]
  overall = [''] * any('eval/bits_per_byte' in r.summary for r in runs)
  return list(dict.fromkeys(names)) + overall
