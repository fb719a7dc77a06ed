"""How figures look, and how they become SVG for a page or a PNG file.

Figures are made through `matplotlib.figure.Figure`: nothing here touches
pyplot's global state, so that figures may be drawn from any thread or notebook.
"""

import contextlib
import io
import math
import re
from collections.abc import Iterator, Sequence

import matplotlib
import numpy as np
from matplotlib import (
  axes as mpl_axes,
  figure as mpl_figure,
  lines as mpl_lines,
  ticker,
)

INK = '#1f2328'  # text and axes; becomes the page's own text colour in SVG
GRID = '#d8dee4'
QUIET = '#7d8590'  # references: bigram floor, balanced level
# Okabe and Ito's colours, "Color Universal Design" (2008), less yellow and
# black, which vanish on a white or on a dark page.
COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9')
MARKERS = ('o', 's', 'D', '^', 'v', 'P')

_RC = {
  'font.family': 'DejaVu Sans',  # ships with matplotlib: one look everywhere
  'font.size': 10,
  'axes.titlesize': 11,
  'axes.titleweight': 'bold',
  'axes.titlelocation': 'left',
  'axes.labelsize': 10,
  'axes.edgecolor': INK,
  'axes.labelcolor': INK,
  'axes.titlecolor': INK,
  'axes.facecolor': 'none',
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.grid': True,
  'axes.axisbelow': True,
  'grid.color': GRID,
  'grid.linewidth': 0.8,
  'text.color': INK,
  'xtick.color': INK,
  'ytick.color': INK,
  'xtick.labelsize': 9,
  'ytick.labelsize': 9,
  'legend.frameon': False,
  'legend.fontsize': 9,
  'lines.linewidth': 1.8,
  'figure.facecolor': 'none',
  'figure.constrained_layout.use': True,
  'svg.fonttype': 'none',  # text stays text: small, selectable, searchable
}


@contextlib.contextmanager
def house() -> Iterator[None]:
  """Inside, figures are drawn in the house style."""
  with matplotlib.rc_context(_RC):
    yield


def figure(width: float, height: float) -> mpl_figure.Figure:
  """An empty figure, in inches."""
  return mpl_figure.Figure(figsize=(width, height))


def grid(
  count: int, height: float, columns: int = 3
) -> tuple[mpl_figure.Figure, list[mpl_axes.Axes]]:
  """A figure of `count` panels, each `height` inches high."""
  rows = math.ceil(count / columns)
  fig = figure(10, height * rows + 0.2)
  axes = list(fig.subplots(rows, columns, squeeze=False).ravel())
  for ax in axes[count:]:
    ax.set_visible(False)
  return fig, axes[:count]


def svg(fig: mpl_figure.Figure, name: str) -> str:
  """The figure as an `<svg>` element to stand in an HTML page.

  Ids are prefixed by `name`, for several figures share the page; ink and grid
  follow the page's colours, light or dark. The same figure gives the same text.
  """
  blank = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
  buffer = io.StringIO()
  with matplotlib.rc_context({**_RC, 'svg.hashsalt': name}):
    fig.savefig(buffer, format='svg', dpi=150, metadata=blank)
  text = buffer.getvalue()
  text = text[text.index('<svg') :]
  # HTML knows the namespaces, and the page's width rules.
  attributes = r' (xmlns(:xlink)?|width|height|version)="[^"]*"'
  text = re.sub(attributes, '', text, count=5)
  text = re.sub(r'(\bid="|href="#|url\(#)', rf'\g<1>{name}-', text)
  text = text.replace(INK, 'currentColor').replace(GRID, 'var(--grid)')
  return text.strip()


def png(fig: mpl_figure.Figure, path: str) -> None:
  """Writes the figure on white."""
  with house():
    fig.savefig(path, format='png', dpi=150, facecolor='white')


def plain(text: str) -> str:
  """Text of the user's that Matplotlib would read as mathematics or hide."""
  text = text.replace('$', r'\$')
  return f' {text}' if text.startswith('_') else text


def short(text: str, length: int = 28) -> str:
  """Cuts long names in the middle, where runs differ least."""
  if len(text) <= length:
    return text
  half = (length - 3) // 2
  return f'{text[:half]}...{text[-half:]}'


def si(value: float) -> str:
  """`12345678.0` -> `'12.3M'`, for axes and tables."""
  for scale, letter in ((1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if abs(value) >= scale * 0.9995:
      return f'{value / scale:.3g}{letter}'
  return f'{value:.3g}'


def steps_axis(ax: mpl_axes.Axes, first: int, last: int) -> None:
  """A horizontal axis of optimizer steps."""
  ax.set_xlabel('step')
  ax.xaxis.set_major_formatter(lambda v, _: si(v))
  if last == first:
    ax.set_xlim(first - 1, first + 1)
    ax.set_xticks([first])
    return
  ax.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
  # From 0 where the first log is near it, and room for the last marker.
  start = 0 if first < 0.1 * last else first
  ax.set_xlim(start, last + 0.015 * (last - start))


def thin(
  steps: np.ndarray, values: np.ndarray, most: int = 1500
) -> tuple[np.ndarray, np.ndarray]:
  """At most `most` points (leading axis), each the mean of its neighbours.

  A page stays small however long the run was.
  """
  if len(steps) <= most:
    return steps, values
  cuts = np.linspace(0, len(steps), most + 1).astype(int)[:-1]
  count = np.diff(np.append(cuts, len(steps)))
  mean = np.add.reduceat(values, cuts, axis=0)
  mean = mean / count.reshape(-1, *[1] * (values.ndim - 1))
  return np.add.reduceat(steps, cuts) / count, mean


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
  """Centred mean over `window` neighbours, fewer at the ends; skips nan."""
  known = np.isfinite(values)
  ones = np.ones(window)
  total = np.convolve(np.where(known, values, 0.0), ones, 'same')
  count = np.convolve(known.astype(float), ones, 'same')
  return np.where(known, total / np.maximum(count, 1.0), np.nan)


def look(i: int) -> dict[str, str]:
  """Colour, marker and dashes of the i-th of several runs."""
  return {
    'color': COLOURS[i % len(COLOURS)],
    'marker': MARKERS[i % len(MARKERS)],
    # Beyond the colours, a second round is told apart by its dashes.
    'linestyle': ('-', '--', ':')[i // len(COLOURS) % 3],
  }


def legend(fig: mpl_figure.Figure, names: Sequence[str]) -> None:
  """Names of the runs over the figure, also of those that lack a curve."""
  handles = [
    mpl_lines.Line2D([], [], **look(i), label=plain(short(name)))
    for i, name in enumerate(names)
  ]
  fig.legend(
    handles=handles, loc='outside upper left', ncols=min(len(names), 4)
  )
