"""What counts as one observation: runs of one pre-trained model do not.

Several fine-tuned runs may begin with the same model, or learn from the same
teacher (`origins.py`): their differences have that model in common, and are no
independent draws of what another one would have given. Their mean is one
observation.
"""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from moe_jax.studies import same_data


def origins(arms: Sequence[str], done: same_data.Done) -> dict[int, Hashable]:
  """{seed: the runs that those of the arms needed, if any}.

  Args:
    arms: that are compared.
    done: the rows of finished runs.
  """
  found: dict[int, set] = {}
  for (arm, seed), row in done.items():
    if arm in arms:
      found.setdefault(seed, set()).update(map(tuple, row.get('needs', ())))
  return {s: frozenset(needs) for s, needs in found.items()}


def means(
  values: Mapping[int, float], of: Mapping[int, Hashable]
) -> list[float]:
  """The mean of each origin's seeds, in the order of their first.

  Where all have the same, each seed counts: either none began with a model, or
  what is said is of that model alone.

  Args:
    values: {seed: value}.
    of: {seed: origin}, as `origins` has them.
  """
  groups: dict[Hashable, list[float]] = {}
  for seed in sorted(values):
    groups.setdefault(of[seed], []).append(values[seed])
  if len(groups) == 1:
    return list(*groups.values())
  return [float(np.mean(v)) for v in groups.values()]
