"""The parity experiment: cells, the selection, and whether it sees bugs."""

import dataclasses
import itertools
import json
import math
import pathlib
import subprocess
import sys

import jax
import pytest

from moe_jax import registry, types
from moe_jax.dispatch import base, scatter
from moe_jax.parity import (
  check as parity,
  covering,
  grid,
  loops,
  report as parity_report,
)
from tests import mains

ROOT = pathlib.Path(__file__).parent.parent
FACTORS = ('dispatch', 'matmul', 'mesh', 'router', 'capacity')

# Those that take assignments of tokens to experts.
ASSIGNING = [n for n in registry.names('dispatch') if n != 'slots']


@dataclasses.dataclass(frozen=True)
class Broken(base.Dispatch):
  """`scatter` with a bug that needs an expert axis to show."""

  bug: str
  matmul: str | None = 'loop'

  def __call__(self, experts, params, x_GTD, seated, axes, key):
    n = axes.size(axes.expert)
    if (
      self.bug == 'expert_gradient'
    ):  # T5X's 'implicit averaging', uncalled for
      keep = lambda w: n * w - jax.lax.stop_gradient((n - 1) * w)
      params = jax.tree.map(keep, params)
    if self.bug == 'token_gradient':
      held = jax.lax.stop_gradient(x_GTD)
      x_GTD = x_GTD if n == 1 else (x_GTD + held) / 2
    if self.bug == 'raises' and n > 1:
      raise ValueError('an expert axis\nof more than one device')
    y_GTD, cause_GN = scatter.Scatter()(
      experts, params, x_GTD, seated, axes, key
    )
    if self.bug == 'scaled':
      y_GTD *= n
    if self.bug == 'cause' and n > 1:
      late_GN = cause_GN == types.CAPACITY
      cause_GN = jax.numpy.where(late_GN, types.RECEIVER, cause_GN)
    if self.bug == 'kept' and n > 1:
      # As many are kept, by the counts, but they are others.
      cause_GN = cause_GN[:, ::-1]
    return y_GTD, cause_GN


BROKEN = 'tests.test_parity.Broken(bug={!r}, matmul=None)'

# None of these is a cell of test_moe; dispatches take turns, whoever joins.
CELLS = [
  ('fsdp=8', 'edges_on_input', 'binding'),
  ('expert=8', 'top_2_token_major', 'tight'),
  ('fsdp=2,expert=4', 'top_2_prioritized', 'tight'),
  ('expert=4,model=2', 'edges_on_input', 'binding'),
  ('data=2,fsdp=2,expert=2', 'no_token_left_behind', 'tight'),
  ('expert=2,model=4', 'top_2_token_major', 'tight'),
  ('data=2,fsdp=4', 'top_2_prioritized', 'tight'),
  ('data=2,expert=2,model=2', 'edges_on_input', 'binding'),
  ('data=4,model=2', 'no_token_left_behind', 'tight'),
  ('expert=4', 'no_token_left_behind', 'tight'),
  ('data=2,model=2', 'top_2_prioritized', 'tight'),
]


def default_cells():
  every = grid.product()
  variants = dict.fromkeys((c.dispatch, c.matmul) for c in every)
  turn = itertools.cycle(variants)
  return [grid.Cell(*next(turn), *values) for values in CELLS]


def run_one(cell):
  (result,) = parity.run([cell])
  return result


# Every fifth; CI runs the grid itself, too.
@pytest.mark.parametrize(
  'cell',
  [
    pytest.param(c, marks=pytest.mark.slow if i % 5 else ())
    for i, c in enumerate(default_cells())
  ],
  ids=lambda c: c.name,
)
def test_cells_agree(cell):
  result = run_one(cell)
  assert result.ok, parity_report.failures([result])
  # Everything was compared: with the loops and with dense on one device.
  arrays = {'x', 'router', 'wi', 'bi', 'wo', 'bo'}
  aux = {'loss', 'load_E', 'cause', 'entropy', 'losses/switch_loss'}
  aux |= {'losses/z_loss', 'stats/loss_free_bias/load'}
  sums = ('switch_loss', 'z_loss')
  aux |= {f'stats/{k}/{v}' for k in sums for v in ('loss', 'weight')}
  health = ('tokens', 'used', 'bias', 'entropy', 'square', 'logsumexp')
  aux |= {f'health/{k}' for k in health}
  values = {'y', 'kept', *(f'aux/{k}' for k in aux)}
  assert set(result.errors) == {
    *(f'{oracle}: {v}' for oracle in ('loops', 'dense') for v in values),
    *(f'loops: slope/{a}' for a in arrays),
    *(f'dense: gradient/{a}' for a in arrays),
  }
  assert result.error == max(result.errors.values()) > 0


@pytest.mark.parametrize(
  ('bug', 'leaf'),
  [
    ('scaled', 'loops: y'),
    ('expert_gradient', 'loops: slope/wi'),
    ('token_gradient', 'dense: gradient/x'),
    ('cause', 'loops: aux/cause'),
    ('kept', 'loops: kept'),
  ],
)
def test_a_bug_fails_where_it_is(bug, leaf):
  rest = ('', 'data=2,expert=4', 'top_2_prioritized', 'tight')
  result = run_one(grid.Cell(BROKEN.format(bug), *rest))
  assert not result.ok and leaf in result.failed
  if bug in ('expert_gradient', 'token_gradient'):
    assert all('gradient' in k or 'slope' in k for k in result.failed)
  if bug == 'expert_gradient':
    named = {k.rpartition('/')[2] for k in result.failed}
    assert named == {'wi', 'bi', 'wo', 'bo'}
  if bug == 'cause':
    assert set(result.failed) == {'loops: aux/cause', 'dense: aux/cause'}


def test_a_cell_that_raises_does_not_end_the_run():
  cells = [
    grid.Cell(BROKEN.format('raises'), '', mesh, 'top_2_prioritized', 'tight')
    for mesh in ('expert=2', 'expert=4')
  ]
  results = list(parity.run(cells))
  assert [r.cell for r in results] == cells
  for r in results:
    assert r.error == math.inf and not r.ok
    assert r.message == 'ValueError: an expert axis of more than one device'


@pytest.mark.slow
@pytest.mark.parametrize(
  ('rules', 'leaf'),
  [
    (loops.Rules(2, 'after', 'rank'), 'loops: kept'),
    (loops.Rules(2, 'before', 'surest'), 'loops: y'),
    (loops.Rules(2, 'after', 'surest', count_all=True), 'loops: aux/loss'),
    (loops.Rules(2, 'after', 'surest', on_input=True), 'loops: slope/router'),
    (loops.Rules(2, 'after', 'surest', one_seat=True), 'loops: aux/load_E'),
  ],
)
def test_loops_see_another_method(rules, leaf, monkeypatch):
  """The reference is no echo: with other rules the same layer is wrong."""
  right = grid.ROUTERS['top_2_prioritized']
  wanted = parity._dense('top_2_prioritized', 'tight')
  wrong = dataclasses.replace(right, rules=rules)
  name = f'not {rules}'  # what is computed is kept by name
  monkeypatch.setitem(grid.ROUTERS, name, wrong)
  monkeypatch.setattr(parity, '_evaluate', lambda cell: dict(wanted))
  result = run_one(grid.Cell('dense', '', 'one', name, 'tight'))
  assert leaf in result.failed
  assert not any(k.startswith('dense') for k in result.failed)


def brute_pairs(cells):
  found = set()
  for c in cells:
    for i in range(len(c)):
      for j in range(i):
        found.add((i, c[i], j, c[j]))
  return found


def test_pairwise_covers_every_pair():
  """Of a product with a hole, in few cells, the same ones each time."""
  full = itertools.product('abc', range(4), 'xyz', range(5), (True, False))
  cells = [c for c in full if not (c[0] == 'a' and c[1] == 3)]
  chosen = covering.pairwise(cells)
  assert brute_pairs(cells[i] for i in chosen) == brute_pairs(cells)
  assert 20 <= len(chosen) <= 30 < len(cells)
  # Values that nothing calls for take turns.
  last = [cells[i][4] for i in chosen]
  assert abs(last.count(True) - last.count(False)) <= 2
  assert chosen == covering.pairwise(cells)


@pytest.mark.parametrize('joined', [False, True])
def test_selection_has_all_pairs_within_the_limit(joined):
  """Of today's family, and with two dispatches more that take a matmul."""
  family = [*ASSIGNING, *grid.OPTIONS]
  grouped = [f'tests.test_parity.Broken(bug={b!r})' for b in ('a', 'b')]
  cells = grid.product(family + grouped if joined else ())
  chosen = grid.select(cells)
  assert len(set(chosen)) == len(chosen) <= 400
  assert brute_pairs(map(dataclasses.astuple, chosen)) == brute_pairs(
    map(dataclasses.astuple, cells)
  )
  dispatches = {c.dispatch for c in cells}
  assert dispatches == {*family, *(grouped if joined else ())}
  meshes = grid.meshes()
  assert {(c.dispatch, c.mesh) for c in chosen} == set(
    itertools.product(dispatches, meshes)
  )
  if joined:
    for g in grouped:
      found = {c.matmul for c in cells if c.dispatch == g}
      assert found == set(grid.MATMULS)
    assert BROKEN.format('a') not in dispatches


def test_a_given_matmul_is_no_factor():
  spec = "tests.test_parity.Broken(bug='a', matmul='loop')"
  cells = grid.product([spec, 'einsum'])
  assert {c.matmul for c in cells} == {''}
  assert len(cells) == 2 * 35 * len(grid.ROUTERS) * len(grid.CAPACITIES)


def run_program(*flags):
  # In a process of its own: programs share names of flags.
  return subprocess.run(
    [sys.executable, '-m', 'experiments.parity', *flags],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )


def test_program_writes_what_it_prints(tmp_path):
  only = 'scatter/data=4/top_2_prioritized/tight'
  folder = tmp_path / 'new'
  done = run_program(
    '--all', f'--only={only}', '--markdown', f'--workdir={folder}'
  )
  assert done.returncode == 0, done.stderr
  assert f'| {only.replace("/", " | ")} |' in done.stdout
  assert (folder / 'parity.md').read_text() == done.stdout
  assert '1/1' in done.stderr
  record = json.loads((folder / 'parity.json').read_text())
  assert {'cells', 'failed', 'max_error', 'tolerance', 'grid'} < set(record)
  assert (record['cells'], record['failed']) == (1, 0)
  (found,) = record['results']
  assert found['name'] == only and found['failed'] == []
  assert 0 < record['max_error'] == found['error'] < record['tolerance'] == 2e-5
  assert '/'.join(found[k] for k in FACTORS if found[k]) == only
  assert set(record['grid']) == {*FACTORS, 'cells'}
  assert set(record['grid']['dispatch']) > set(ASSIGNING)
  assert len(record['grid']['mesh']) == 35


def test_program_fails_with_a_bug(tmp_path):
  """A private dispatch from the command line: exit code 1 and its name."""
  spec = BROKEN.format('scaled')
  # Of the selection's cells the first on this mesh.
  flags = ('--only=/fsdp=2,expert=4/', '--cells=1', f'--workdir={tmp_path}')
  code, out = mains.call('parity', f'--dispatch={spec}', *flags)
  assert code == 1
  record = json.loads((tmp_path / 'parity.json').read_text())
  assert record['failed'] == record['cells'] == 1
  (found,) = record['results']
  assert 'dense: y' in found['failed']
  assert f'FAILED {found["name"]}\n' in out
  # y is four times too large.
  assert ': off by 3.0e+00 of its largest entry\n' in out
  assert 'python -m experiments.parity --all --only=' in out


def test_program_names_a_cell_when_none_match():
  done = run_program('--only=scater')
  assert done.returncode == 1 and done.stdout == ''
  every = grid.product()
  assert done.stderr == (
    f"error: --only='scater' is in the name of none of "
    f"{len(grid.select(every))} cells, such as 'dense/one/switch/ample'; "
    f'--all chooses from {len(every)}\n'
  )
