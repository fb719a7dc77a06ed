"""What a routing page draws of metrics, by the names that they have."""

import numpy as np

from moe_jax.analysis import records
from moe_jax.plots import routing_figures, routing_sections
from tests.test_routing_page import METRICS, D, E, K

SCHEMA = records.Schema((1, 3), (E, E), K, 9)


def test_metrics_that_are_absent_or_new():
  schema = SCHEMA
  titles = lambda metrics: [
    s.title
    for s in (*routing_sections.SECTIONS, routing_sections.rest(metrics))
    if list(s.draw(metrics, schema))
  ]
  assert titles({}) == []
  assert titles({'domain_specialisation/value': [None, None]}) == []
  # Of other shapes, or no numbers at all.
  odd = {k: [['a'], 3] for k in ('drops/by_position_value', 'drops/edges')}
  assert titles(odd | {'drops/value': 'none', 'adaptive/histogram': []}) == []
  found = titles({'mine/of_value': [0.1, 0.2], 'mine/of_null': [0.1, 0.1]})
  assert found == ['What else was measured']
  null = {'paths/entropy_null': 8, 'paths/tokens': 12}
  assert routing_sections.scalars(METRICS | null) == [
    ('Paths: entropy', '7.25', '8'),
    ('Paths: tokens', '12', ''),
    ('Saturation', 'one <checkpoint>', ''),
  ]


def test_panels_are_the_metrics_by_layer():
  schema = SCHEMA
  (panel,) = routing_sections.panels(
    METRICS, {'domain_specialisation/': 't'}, schema
  )
  np.testing.assert_array_equal(panel.value, [0.1, 0.2])
  np.testing.assert_array_equal(panel.null_high, [0.02, 0.03])
  np.testing.assert_array_equal(panel.low, [0.05, 0.15])
  fig = routing_figures.by_layer([panel], schema.layers)
  lines = {l.get_label(): l.get_ydata() for l in fig.axes[0].lines}
  np.testing.assert_array_equal(lines['measured'], panel.value)
  np.testing.assert_array_equal(lines['by chance'], panel.null)


def test_checkpoints_stand_in_order():
  schema = SCHEMA
  metrics = {'saturation/top_1_value': [0.1, 0.1]}
  for at, value in (('1000', 0.9), ('untrained', 0.1), ('200', 0.5)):
    metrics[f'saturation_{at}/top_1_value'] = [value, value / 2]
    metrics[f'saturation_{at}/top_1_null'] = [0.0, 0.2]
  (section,) = [s for s in routing_sections.SECTIONS if 'settle' in s.title]
  ((_, fig, _),) = section.draw(metrics, schema)
  ax = fig.axes[0]
  names = [t.get_text() for t in ax.get_xticklabels()]
  assert names == ['untrained', '200', '1,000']
  lines = {l.get_label(): list(l.get_ydata()) for l in ax.lines}
  assert lines['layer 1'] == [0.1, 0.5, 0.9]
  assert lines['by chance'] == [0.1] * 3
  assert not list(routing_sections.rest(metrics).draw(metrics, schema))


def test_what_is_lost_is_of_the_own_layers():
  schema = records.Schema((1,), (E,), K, 9, names=('decoder/1',))
  rng = np.random.default_rng(0)
  lost_MEX, cka_MEE = rng.normal(size=(2, E, D + 1)), rng.random((2, E, E))
  metrics = {
    'importance/layers': ['encoder/0', 'decoder/1'],
    'importance/removed': lost_MEX.tolist(),
    'importance/domains': list('abc'),
    'outputs/layers': ['decoder/1'],
    'outputs/cka': cka_MEE.tolist(),
  }
  (section,) = [s for s in routing_sections.SECTIONS if 'gone' in s.title]
  ((name, fig, _),) = section.draw(metrics, schema)  # cka is of more layers
  mesh = fig.axes[0].collections[0].get_array().reshape(D, E)
  assert name == 'gone'
  np.testing.assert_array_equal(
    np.sort(mesh, 1), np.sort(lost_MEX[1, :, :D].T, 1)
  )


def test_an_expert_that_no_domain_has_is_white():
  count = np.zeros((1, 2, 3))
  count[0, :, 0], count[0, 0, 1] = (4, 8), 4
  lift = routing_figures.lifts(count[0])
  np.testing.assert_allclose(lift, [[2 / 3, 2, 1], [4 / 3, 0, 1]])


def test_bins_without_a_number_are_left_out():
  lines = {'measured': [0.5, 0.25, np.nan], 'by chance': [np.nan] * 3}
  one = routing_figures.Steps(['0', '32', '64'], lines, 'from', 'dropped, %')
  ax = routing_figures.steps([one]).axes[0]
  assert [t.get_text() for t in ax.get_xticklabels()] == ['0', '32']
  np.testing.assert_array_equal(ax.lines[0].get_ydata(), [0.5, 0.25])
