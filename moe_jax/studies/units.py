"""What counts as one observation: runs of one pre-trained model do not.

Several fine-tuned runs may begin with the same model, or learn from the same
teacher (`origins.py`): their differences have that model in common, and are no
independent draws of what another one would have given. Their mean is one
observation. Where all are of one model each run counts, and what is said is of
that model alone.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from moe_jax.studies import same_data

Key = tuple[str, int]  # arm, seed


@dataclasses.dataclass(frozen=True)
class Units:
  """Observations.

  Attributes:
    values: one each; of one model those of its runs; one alone where several
      models are shared in such a way that no two runs are apart.
    count: how many are independent: runs, or models.
  """

  values: list[float]
  count: int


def of(
  values: Mapping[int, float], arms: Sequence[str], done: same_data.Done
) -> Units:
  """The observations that values by seed are.

  Args:
    values: {seed: value}.
    arms: all that values are made of.
    done: the rows of finished runs.
  """
  roots: dict[int, set[Key]] = {s: set() for s in values}
  for (arm, seed), row in done.items():
    if arm in arms and seed in roots:
      roots[seed] |= _roots(row, done)
  groups: list[tuple[set[Key], list[int]]] = []
  for seed in sorted(values):
    shared = [g for g in groups if g[0] & roots[seed]]
    groups = [g for g in groups if g not in shared]
    seeds = sorted([seed, *(s for _, some in shared for s in some)])
    groups.append((roots[seed].union(*(r for r, _ in shared)), seeds))
  groups.sort(key=lambda g: g[1])
  if len(groups) == 1 and all(r == groups[0][0] for r in roots.values()):
    return Units([values[s] for s in sorted(values)], 1)
  means = [float(np.mean([values[s] for s in some])) for _, some in groups]
  return Units(means, len(means))


def _roots(row, done) -> set[Key]:
  """The runs that this one is made of, and those that these are."""
  needs = row.get('needs')
  if needs is None:  # rows of earlier code name the arm
    named = {row.get('init_from'), row.get('teacher')}
    needs = [key for key in done if key[0] in named]
  found = set(map(tuple, needs))
  for key in tuple(found):
    if key in done:
      found |= _roots(done[key], done)
  return found
