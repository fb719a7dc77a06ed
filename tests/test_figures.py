"""Figures show what their records say."""

import numpy as np

from moe_jax.plots import (
  curves,
  domains,
  loads,
  records,
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
