"""A small set of cells in which every pair of factor values occurs."""

import itertools
from collections.abc import Sequence

import numpy as np


def pairs(cell: Sequence) -> list[tuple]:
  """The pairs ((factor, value), (factor, value)) of a cell."""
  return list(itertools.combinations(enumerate(cell), 2))


def pairwise(cells: Sequence[Sequence]) -> list[int]:
  """Indices of cells that hold every pair that any of the cells holds.

  Greedy and deterministic: the next cell is the one with most pairs that are
  still missing, of equals the one whose values were used least. A beginning of
  the list thus holds as many pairs as a list of its length easily can.

  Args:
    cells: one value a factor, all equally long; the whole product, less what
      cannot be combined.
  """
  pair_CP = _numbered([pairs(c) for c in cells])
  value_CF = _numbered([list(enumerate(c)) for c in cells])
  missing = np.ones(pair_CP.max() + 1, int)
  used = np.zeros(value_CF.max() + 1, int)
  chosen = []
  while missing.any():
    gain_C = missing[pair_CP].sum(-1)
    equals = np.flatnonzero(gain_C == gain_C.max())
    best = int(equals[used[value_CF[equals]].sum(-1).argmin()])
    missing[pair_CP[best]] = 0
    used[value_CF[best]] += 1
    chosen.append(best)
  return chosen


def _numbered(table: list[list[tuple]]) -> np.ndarray:
  numbers: dict[tuple, int] = {}
  number = lambda entry: numbers.setdefault(entry, len(numbers))
  return np.array([[number(entry) for entry in row] for row in table])
