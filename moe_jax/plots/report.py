"""The report of a run, the comparison of several, and the README's picture."""

import json
import pathlib
from collections.abc import Sequence

from matplotlib import figure as mpl_figure

from moe_jax.errors import UserError
from moe_jax.plots import (
  curves,
  domains,
  loads,
  page,
  records,
  style,
  tables,
)

_CAPTIONS = {
  'loss': 'Loss of the training batches, and the held-out score at each '
  'evaluation (of text, bits per byte). Where a thin line shows each log, the '
  'bold one is its running mean over a thirtieth of the run.',
  'domains': 'Bits per byte of the held-out documents. Dots: the model; bars: '
  '95 % intervals; grey ticks: a bigram model of the bytes.',
  'loads': 'Share of assignments that each expert was given, over the mean of '
  'its layer: orange is busy, purple is idle, white is balanced. The grey bars '
  'and the busiest load are means over the last tenth of the logs.',
  'ranked': 'Load of each expert over the mean of its layer, busiest first, '
  'mean over the last tenth of the logs. A flat line at 1 is balanced.',
  'routing': 'Means over the MoE layers. The busiest expert is the largest '
  'load of a layer over its mean load; balance losses carry no weight, and '
  'balanced routing gives 1 for those that are so normalised.',
  'optimization': 'Learning rate, norm of the gradient over all parameters, '
  'and tokens per second over all devices.',
}


def write(workdir: str, out_dir: str | None = None) -> str:
  """Writes `report.html` of one run, by default into its workdir.

  Its figures stand beside it, too: `figures/report_NAME.png`.

  Returns:
    The path of the page.

  Raises:
    FileNotFoundError, ValueError: see `records.read`.
  """
  run = records.read(workdir)
  to = _Page(out_dir or workdir, 'report.html')
  body = [page.paragraph(_state(run))]
  header, rows = tables.domains(run.summary)
  if rows:
    body += [
      page.heading('Held-out bits per byte'),
      page.table(header, rows, total=rows[-1][0] == 'overall'),
      page.paragraph(
        'The difference is the model less a bigram model of the bytes: the '
        'lower, the better.'
      ),
    ]
  body += to.figure('domains', domains.bits_per_byte([run]))
  facts = tables.facts(run.summary)
  if facts:
    body += [page.heading('Facts'), page.facts(facts)]
  body += to.section('Learning', 'loss', curves.loss([run]))
  body += to.section('Load of the experts', 'loads', loads.over_time(run))
  body += to.section('Routing', 'routing', curves.routing([run]))
  body += to.section('Optimization', 'optimization', curves.optimization([run]))
  body += [page.heading('Config'), _config(run)]
  return to.save(run.name, body)


def compare(workdirs: Sequence[str], out_dir: str) -> str:
  """Writes `compare.html` of several runs into `out_dir`; returns the path.

  Differences are to the first run. `figures/compare_NAME.png` stand beside it.

  Raises:
    FileNotFoundError, ValueError: see `records.read`; no workdir at all.
  """
  if not workdirs:
    raise UserError('no runs to compare: workdirs is empty')
  runs = records.read_all(workdirs)
  to = _Page(out_dir, 'compare.html')
  body = [page.paragraph(f'{r.name}: {_state(r)}') for r in runs]
  body += [
    page.heading('Side by side'),
    page.table(*tables.comparison(runs)),
    page.paragraph(f'In parentheses: the difference to {runs[0].name}.'),
  ]
  if tables.not_alike(runs):
    body.append(page.paragraph(tables.not_alike(runs)))
  body += to.figure('domains', domains.bits_per_byte(runs))
  body += to.section('Learning', 'loss', curves.loss(runs))
  body += to.section('Load of the experts', 'ranked', loads.ranked(runs))
  body += to.section('Routing', 'routing', curves.routing(runs))
  body += to.section('Optimization', 'optimization', curves.optimization(runs))
  body.append(page.heading('Configs'))
  header, rows = tables.config_differences(runs)
  if rows:
    body.append(page.table(header, rows))
  else:
    body.append(page.paragraph('All runs have the same config.'))
  body += [_config(r) for r in runs]
  return to.save(f'{len(runs)} runs compared', body)


def readme_png(workdir: str, path: str) -> str:
  """One picture of a run: loss, bits per byte, and the first MoE layer's load.

  Raises:
    FileNotFoundError, ValueError: see `records.read`.
  """
  run = records.read(workdir)
  steps, layers = run.loads()
  with style.house():
    fig = style.figure(10, 6.4 if layers else 3.4)
    bands = fig.subfigures(2, 1) if layers else [fig]
    left, right = bands[0].subplots(1, 2)
    curves.draw_loss(left, [run])
    domains.draw(right, [run])
    if layers:
      layer, load_SE = next(iter(layers.items()))
      heat, bars = bands[1].subplots(1, 2, width_ratios=[8, 1])
      mesh = loads.draw_heat(
        heat, steps, load_SE, f'Load of the experts of layer {layer}'
      )
      loads.draw_bars(bars, load_SE, 'at the end')
      loads.add_scale(bands[1], mesh, [heat, bars], 3.2)
  style.png(fig, path)
  return path


def _state(run: records.Run) -> str:
  if run.summary:
    return f'finished at step {run.last_step:,}; records in {run.workdir}.'
  return (
    f'not finished (no summary.json): logged up to step {run.last_step:,}; '
    f'records in {run.workdir}.'
  )


def _config(run: records.Run) -> str:
  return page.folded(f'Config of {run.name}', json.dumps(run.config, indent=2))


class _Page:
  """Where a page goes; its figures stand in it, and as PNG beside it."""

  def __init__(self, directory: str, name: str):
    self._path = pathlib.Path(directory) / name

  def section(
    self, title: str, name: str, fig: mpl_figure.Figure | None
  ) -> list[str]:
    figure = self.figure(name, fig)
    return [page.heading(title), *figure] if figure else []

  def figure(self, name: str, fig: mpl_figure.Figure | None) -> list[str]:
    if fig is None:
      return []
    folder = self._path.parent / 'figures'
    folder.mkdir(parents=True, exist_ok=True)
    svg = style.svg(fig, name)
    fig.set_layout_engine('none')  # keeps what was laid out, for half the time
    style.png(fig, str(folder / f'{self._path.stem}_{name}.png'))
    return [page.figure(svg, _CAPTIONS[name])]

  def save(self, title: str, body: Sequence[str]) -> str:
    self._path.parent.mkdir(parents=True, exist_ok=True)
    self._path.write_text(page.page(title, body), encoding='utf-8')
    return str(self._path)
