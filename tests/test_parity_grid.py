"""The grid's cells: which are run, their seats, errors and table."""

import json
import math

import numpy as np
import pytest

from moe_jax import types
from moe_jax.parity import (
  check as parity,
  grid,
  loops,
  report as parity_report,
)


def test_capacities_bind_and_choices_are_clear():
  """Drops rise as capacity falls; no tie that rounding could decide."""
  arrays, mask_BL, _ = parity.inputs()
  for router in grid.ROUTERS:
    causes = [
      parity._loops(router, c)['aux/cause']
      for c in ('ample', 'binding', 'tight')
    ]
    dropped = [int(c[types.CAPACITY]) for c in causes]
    assert dropped[0] == 0 < dropped[1] < dropped[2], router
    assert all(c[types.PADDING] > 0 for c in causes)
  x_ND = arrays['x'][mask_BL].astype(np.float64)
  probs = loops.softmax(x_ND @ arrays['router'].astype(np.float64))
  scores = np.sort(probs + arrays['bias'], -1)[:, ::-1][:, :4]
  assert -np.diff(scores, axis=-1).max() > 1e-5
  assert np.diff(np.sort(probs.max(-1))).min() > 1e-7


def test_seats_by_hand():
  """Two experts of one seat; tokens 1 and 2 are surer than token 0."""
  probs = np.array([[0.6, 0.4], [0.7, 0.3], [0.2, 0.8]])
  choices = {0: [0, 1], 1: [0, 1], 2: [1, 0]}
  seat = lambda rules, rows=1: loops.seat(choices, probs, rules, rows)
  assert seat(loops.Rules(2)) == {0: [0], 1: [], 2: [1]}
  assert seat(loops.Rules(2, order='token')) == {0: [0, 1], 1: [], 2: []}
  assert seat(loops.Rules(2, order='surest')) == {0: [], 1: [0], 2: [1]}
  one = loops.Rules(2, one_seat=True)
  assert seat(one) == {0: [0], 1: [], 2: [1]}
  assert seat(one, 2) == {0: [0], 1: [0], 2: [1]}
  weigh = lambda how, kept: loops.weigh(
    probs[2], [1, 0], kept, loops.Rules(2, how)
  )
  assert weigh('no', [1])[1] == 0.8
  assert weigh('before', [1])[0] == pytest.approx(0.2)
  assert weigh('after', [1])[1] == 1.0
  assert loops.Rules(2).rows(1.0, 16, 8) == 4
  assert loops.Rules(3, one_seat=True).rows(0.5, 16, 8) == 1
  assert loops.Rules(2).rows(None, 16, 8) == 16


def test_error_is_relative_and_never_nan():
  assert parity.error([1.0, 4.2], [1.0, 4.0]) == pytest.approx(0.05)
  assert parity.error(np.zeros(2), np.zeros(2)) == 0
  assert parity.error([1e-3], [0.0]) == 1e-3
  assert parity.error([np.nan, 1.0], [1.0, 1.0]) == math.inf
  with pytest.raises(ValueError, match=r'shape \(2,\), expected \(1, 2\)'):
    parity.error([1, 2], [[1, 2]])


def test_meshes_are_all_factorisations():
  found = [
    tuple(grid.Cell('', '', m, '', '').sizes.values()) for m in grid.meshes()
  ]
  # Exponents of 2 along 4 axes that add up to at most 3: 7 over 3.
  assert len(set(found)) == len(found) == 35
  assert sum(math.prod(f) == 8 for f in found) == 20
  assert {math.prod(f) for f in found} == {1, 2, 4, 8}
  assert grid.Cell('', '', 'fsdp=2,model=4', '', '').sizes == {
    'data': 1,
    'fsdp': 2,
    'expert': 1,
    'model': 4,
  }


def result(mesh, error, failed=(), raised=None):
  cell = grid.Cell('scatter', 'loop', mesh, 'switch', 'tight')
  errors = {} if raised else {'dense: y': error, 'loops: y': error / 2}
  return parity.Result(cell, errors, failed, 1.25, raised)


def test_table_and_failures_by_hand():
  results = [
    result('one', 1e-7),
    result('data=2,expert=4', 0.5, ('dense: y', 'loops: y')),
    result('model=8', 0, raised=ValueError('no such\n  thing')),
  ]
  header, rows = parity_report.table(results)
  cells = dict(zip(header, rows[0]))
  assert cells == {
    'largest error': 'scatter+loop',
    'cells': '3',
    'failed': '2',
    'one device': '1.0e-07',
    'data': '5.0e-01',
    'fsdp': '-',
    'expert': '5.0e-01',
    'model': 'inf',
    'all': 'inf',
  }
  assert [r[0] for r in rows] == ['scatter+loop', 'switch', 'tight', 'all']
  assert parity_report.worst(results, 2)[1] == [
    ['inf', 'ValueError: no such thing', *results[2].cell.name.split('/')],
    ['5.0e-01', 'dense: y', *results[1].cell.name.split('/')],
  ]
  wrong, raised = parity_report.failures(results, ['a.B(c=1)'])
  assert wrong.splitlines() == [
    'FAILED scatter+loop/data=2,expert=4/switch/tight',
    '  dense: y: off by 5.0e-01 of its largest entry',
    '  loops: y: off by 2.5e-01 of its largest entry',
    '  python -m experiments.parity --all '
    "--only=scatter+loop/data=2,expert=4/switch/tight --dispatch='a.B(c=1)'",
  ]
  assert '  ValueError: no such thing' in raised.splitlines()
  cells = [r.cell for r in results]
  record = parity_report.record(results, cells)
  text = json.dumps(record, allow_nan=False)
  assert json.loads(text)['results'][2]['error'] is None
  assert (record['cells'], record['failed']) == (3, 2)
  assert record['max_error'] is None and record['seconds'] == 3.8
  line = parity_report.coverage(results[:1], cells)
  # Of 5 factors 10 pairs; 4 of them with the mesh, which has three values.
  assert line == '1 of 3 cells, 10 of 18 pairs of factor values'
