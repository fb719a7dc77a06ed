"""Figures show what their records say."""

import numpy as np
import pytest
from matplotlib import image

from moe_jax.plots import (
  ablations,
  curves,
  domains,
  loads,
  records,
  report,
)
from tests import test_plots


def test_heat_map_shows_each_expert_at_each_step(tmp_path):
  run = records.read(test_plots.write_run(tmp_path / 'run', logs=6, experts=3))
  steps, layers = run.loads()
  fig = loads.over_time(run)
  meshes = [a.collections[0] for a in fig.axes if a.get_ylabel() == 'expert']
  shown_ES = np.asarray(meshes[0].get_array()).reshape(3, 6)
  np.testing.assert_allclose(shown_ES, layers[1].T)
  titles = [a.get_title(loc='left') for a in fig.axes]
  assert 'Layer 1' in titles and 'Layer 3' in titles
  edges = meshes[0].get_coordinates()[0, :, 0]
  np.testing.assert_allclose((edges[1:] + edges[:-1]) / 2, steps)


def test_ranked_loads_fall_and_keep_their_mean(tmp_path):
  runs = [
    records.read(test_plots.write_run(tmp_path / 'a', experts=8)),
    records.read(test_plots.write_run(tmp_path / 'b', dense=True)),
  ]
  fig = loads.ranked(runs)
  lines = [line for line in fig.axes[0].lines if len(line.get_xdata()) == 8]
  assert len(lines) == 1
  load_E = lines[0].get_ydata()
  assert (np.diff(load_E) <= 0).all()
  np.testing.assert_allclose(load_E.mean(), 1.0)
  np.testing.assert_allclose(
    load_E.max(), runs[0].loads()[1][1][-4:].mean(axis=0).max()
  )
  assert loads.ranked(runs[1:]) is None


def test_curves_show_the_records(tmp_path):
  run = records.read(test_plots.write_run(tmp_path / 'run', logs=12))
  left, right = curves.loss([run]).axes
  steps, values = run.series('loss')
  np.testing.assert_allclose(left.lines[0].get_xdata(), steps)
  np.testing.assert_allclose(left.lines[0].get_ydata(), values)
  points = {line.get_label(): line.get_ydata() for line in right.lines}
  np.testing.assert_allclose(points['overall'], [2.1, 2.0 + 1.0 / 12])
  np.testing.assert_allclose(points['english'], [1.6, 1.5 + 1.0 / 12])
  assert np.allclose(points['bigram, overall'], 3.5)
  dropped = curves.routing([run]).axes[0]
  np.testing.assert_allclose(
    dropped.lines[0].get_ydata(), [10.0 / i for i in range(1, 13)]
  )


def test_domain_dots(tmp_path):
  runs = [
    records.read(test_plots.write_run(tmp_path / 'a')),
    records.read(
      test_plots.write_run(tmp_path / 'b', **{'eval/python/bits_per_byte': 9})
    ),
  ]
  ax = domains.bits_per_byte(runs).axes[0]
  labels = [t.get_text() for t in ax.get_yticklabels()]
  assert labels == ['english', 'python', 'overall']
  x = [tuple(np.asarray(line.get_xdata(), float)) for line in ax.lines]
  for wanted in ((1.5,), (2.0,), (9.0,), (1.45, 1.55), (3.25, 3.25)):
    assert wanted in x, wanted


def test_figures_stand_beside_their_page(tmp_path):
  """As many as in it, each of its width, none of them blank."""
  run = test_plots.write_run(tmp_path / 'run', logs=2, experts=4)
  text = tmp_path / 'run' / 'report.html'
  assert report.write(run) == str(text)
  found = sorted((tmp_path / 'run' / 'figures').iterdir())
  assert [p.name.partition('_')[0] for p in found] == ['report'] * len(found)
  assert len(found) == text.read_text().count('<figure>') == 5
  report.readme_png(run, str(tmp_path / 'readme.png'))
  for path in (*found, tmp_path / 'readme.png'):
    pixels = image.imread(path)
    assert pixels.shape[1] == 1500 and pixels[..., :3].std() > 0.05, path


def drawn(kind, values, curve=None, **fields):
  spec = dict(kind=kind, title='t', y='y', metric='m', **fields)
  return ablations.draw(spec, lambda metric, arm: values.get(arm), curve)


def test_axes_of_studies_fit_the_data():
  """Two arms that differ by a hundredth of what they share."""
  values = {'a': (2.0, 1.99, 2.01), 'b': (2.02, 2.01, 2.03)}
  series = {'one': (('x', 'a'),), 'two': (('x', 'b'), ('z', 'none'))}
  theirs = {'one': (('x', 0.0),), 'two': (('x', 1.0),)}
  fig = drawn('points', values, series=series, published=theirs)
  published, here = fig.axes
  low, high = here.get_ylim()
  assert 1.98 < low < 1.99 and 2.03 < high < 2.04
  assert here.get_title(loc='left') == (
    'here: mean, 95 % interval (axis without 0)'
  )
  assert published.get_title(loc='left') == 'published'
  one, two = (c.lines[0].get_xydata()[0] for c in here.containers)
  assert one[0] < 0 < two[0] < 0.5 and (one[1], two[1]) == (2.0, 2.02)
  assert [t.get_text() for t in here.get_xticklabels()] == ['x', 'z']


@pytest.mark.parametrize('wide', [False, True])
def test_lines_are_seen_beside_the_interval_of_two_seeds(wide):
  values = {'a': (2.0, 1.9, 2.1), 'b': (2.2, 2.1, 2.2 + 2 * wide)}
  series = {'one': ((1, 'a'), (2, 'b'))}
  (ax,) = drawn('lines', values, series=series).axes
  assert ('cut' in ax.get_title(loc='left')) == wide
  low, high = ax.get_ylim()
  assert 1.87 <= low <= 1.9 and 2.2 < high <= 2.3 + 1e-9
  assert not wide or high > 2.25


def test_ratios_stand_on_a_logarithmic_axis():
  """The interval of a mean may reach below 0: it ends a tenth below."""
  values = {'a': (5.0, 4.0, 6.0), 'b': (0.05, -0.01, 0.11)}
  series = {'one': (('x', 'a'), ('z', 'b'))}
  (ax,) = drawn('points', values, series=series, log_y=True).axes
  assert ax.get_yscale() == 'log' and 1e-3 < ax.get_ylim()[0] < 0.005


def test_curves_begin_after_the_fall():
  curve = lambda arm: ([1, 20, 21, 100], [9.0, 8.0, 2.0, 1.0])
  (ax,) = drawn('curves', {}, curve, x='step', series={'one': 'a'}).axes
  assert ax.lines[0].get_xydata().tolist() == [[21, 2.0], [100, 1.0]]
  assert 'after the first 20% of the steps' in ax.get_title(loc='left')
