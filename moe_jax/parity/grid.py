"""The cells of `parity`: factors, their values, and a selection of them.

| factor   | values                                                       |
| dispatch | every method of the family, and OPTIONS                      |
| matmul   | MATMULS, where a dispatch has a field `matmul`               |
| mesh     | all 35 of at most 8 devices, 2 ** n along each axis          |
| router   | ROUTERS, with their seating                                  |
| capacity | dropless, one seat for an assignment on average, and half of |
|          |   that                                                       |
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

from moe_jax import registry, types
from moe_jax.parallel import mesh as mesh_lib
from moe_jax.parallel.axes import MESH_AXES
from moe_jax.parity import covering, loops

# Every axis may be 8 wide, D = E lets the kept set travel as an output, and a
# device has two groups of T tokens or more.
B, L, D, E, F, T = 8, 32, 8, 8, 16, 16
DEVICES = 8
# Beside every method of the family at its defaults. No device is asked for more
# than 1.7 times a balanced load: the buffer of `ragged_all_to_all` (2.0) clips
# nobody; with 1.0 most dropless cells with an expert axis take the other path.
OPTIONS = {
  'scatter_in_stages': 'scatter(pipeline_degree=2, host=2)',
  'ragged_with_fallback': (
    "ragged_all_to_all(buffer_factor=1.0, overflow='gather_reduce')"
  ),
}
MATMULS = ('loop', 'ragged_dot', 'blocked')
CAPACITIES = {'ample': None, 'binding': 1.0, 'tight': 0.5}


@dataclasses.dataclass(frozen=True)
class Routing:
  """A router with its seating, and what both mean to the loops."""

  router: str
  rules: loops.Rules
  seating: str = 'rank_major()'


ROUTERS = {
  'switch': Routing('switch()', loops.Rules(1)),
  'top_2': Routing('top_k(k=2)', loops.Rules(2, 'before')),
  'top_2_token_major': Routing(
    "top_k(k=2, renormalize='kept')",
    loops.Rules(2, 'after', 'token'),
    'token_major()',
  ),
  'top_2_prioritized': Routing(
    "top_k(k=2, renormalize='kept')",
    loops.Rules(2, 'after', 'surest'),
    'batch_prioritized()',
  ),
  'top_3_raw': Routing('top_k(k=3, renormalize=False)', loops.Rules(3)),
  'no_token_left_behind': Routing(
    'no_token_left_behind(k=3)', loops.Rules(3, one_seat=True)
  ),
  'edges_on_input': Routing(
    'moe_jax.parity.edges.Edges()',
    loops.Rules(2, 'before', on_input=True, count_all=True),
  ),
}


@dataclasses.dataclass(frozen=True)
class Cell:
  """One value of each factor, as names.

  Attributes:
    dispatch: a method of the family, of OPTIONS, or a call string.
    matmul: one of MATMULS, or '' where the dispatch has no such field.
    mesh: `'data=2,expert=4'` or `'one'`.
    router: of ROUTERS.
    capacity: of CAPACITIES.
  """

  dispatch: str
  matmul: str
  mesh: str
  router: str
  capacity: str

  @property
  def spec(self) -> str:
    """The call string of the dispatch."""
    return OPTIONS.get(self.dispatch, self.dispatch)

  @property
  def variant(self) -> str:
    """The dispatch with its matmul."""
    return f'{self.dispatch}+{self.matmul}' if self.matmul else self.dispatch

  @property
  def name(self) -> str:
    return '/'.join((self.variant, self.mesh, self.router, self.capacity))

  @property
  def sizes(self) -> dict[str, int]:
    """Of the four mesh axes."""
    parts = () if self.mesh == 'one' else self.mesh.split(',')
    pairs = (p.split('=') for p in parts)
    return mesh_lib.exact(**{k: int(v) for k, v in pairs})


def meshes() -> list[str]:
  """All meshes of at most 8 devices, a power of two along each axis."""
  found = []
  for sizes in itertools.product((1, 2, 4, 8), repeat=len(MESH_AXES)):
    if math.prod(sizes) <= DEVICES:
      parts = [f'{k}={n}' for k, n in zip(MESH_AXES, sizes) if n > 1]
      found.append(','.join(parts) or 'one')
  return found


def product(dispatches: Sequence[str] = ()) -> list[Cell]:
  """Every cell, of these dispatches (default: the whole family and OPTIONS).

  Less those that take no assignments of tokens to experts.
  """
  found = []
  for name in dispatches or (*registry.names('dispatch'), *OPTIONS):
    spec = OPTIONS.get(name, name)
    made = registry.build('dispatch', spec)
    if made.routing is not types.Routing:
      continue
    fields = dataclasses.fields(made)
    free = {f.name for f in fields} - set(registry.parse(spec)[1])
    matmuls = MATMULS if 'matmul' in free else ('',)
    rest = itertools.product(matmuls, meshes(), ROUTERS, CAPACITIES)
    found += [Cell(name, *values) for values in rest]
  return found


def select(cells: Sequence[Cell]) -> list[Cell]:
  """A selection with every pair of factor values (see `covering`)."""
  values = [dataclasses.astuple(c) for c in cells]
  return [cells[i] for i in covering.pairwise(values)]
