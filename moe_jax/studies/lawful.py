"""The scaling laws of a study: fitted to its rows, told and drawn.

A law is a dict of a study file: 'name', 'title', 'form' of `laws.FORMS`,
'metric' (of the runs), 'arms' {arm: {'experts': E, 'tokens': of training,
'embeddings': parameters that are no part of n, 'label': of its panel}},
'held_out' (arms that the fit does not see) and, where it is drawn, 'file'.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import figure as mpl_figure

from moe_jax.plots import laws as plots
from moe_jax.studies import derived, laws, results

FILE = 'laws.json'
_DRAWS = 200


@dataclasses.dataclass(frozen=True)
class Found:
  """A law of a study, fitted.

  Attributes:
    spec: as in the study file.
    law: of the runs that the fit saw.
    points, labels, unseen: of all runs: numbers, panels, whether left out.
  """

  spec: Mapping[str, Any]
  law: laws.Law
  points: laws.Points
  labels: Sequence[str]
  unseen: np.ndarray

  def residuals(self) -> np.ndarray:
    """[P], log of the loss less that of the law, of all runs."""
    p = self.points
    return np.log(p.loss / self.law.loss(p.parameters, p.experts, p.tokens))


def find(spec: Mapping[str, Any], rows: Sequence[results.Row]) -> Found | None:
  """The law of a spec, or None where too few of its arms have been run."""
  runs, labels, unseen = [], [], []
  for arm, cell in spec['arms'].items():
    loss = derived.values(spec['metric'], arm, rows)
    active = derived.values('active_parameters', arm, rows)
    for seed in sorted(loss):
      n = active[seed] - cell['embeddings']
      runs.append((n, cell['experts'], cell['tokens'], loss[seed]))
      labels.append(cell['label'])
      unseen.append(arm in spec['held_out'])
  if not runs:
    return None
  points, unseen = laws.Points(*np.array(runs).T), np.array(unseen)
  seen = points.take(np.flatnonzero(~unseen))
  if len(seen.cells()) < len(laws.FORMS[spec['form']].names):
    return None
  law = laws.fit(seen, spec['form'], draws=_DRAWS)
  return Found(spec, law, points, labels, unseen)


def record(found: Found) -> dict[str, Any]:
  """For laws.json; numbers only."""
  residuals = found.residuals()
  return {
    'name': found.spec['name'],
    'form': found.law.form,
    'parameters': dict(found.law.parameters),
    'intervals': {k: list(v) for k, v in found.law.intervals.items()},
    'centre': list(found.law.centre),
    'experts': list(found.law.experts),
    'runs': int((~found.unseen).sum()),
    'error': found.law.error,
    'residuals': _groups(found, residuals),
    'corner': _corner(found),
    'unseen': [
      {'tokens': t, 'experts': e, 'loss': y, 'residual': r}
      for t, e, y, r in zip(
        *(
          v[found.unseen].tolist()
          for v in (
            found.points.tokens,
            found.points.experts,
            found.points.loss,
            residuals,
          )
        )
      )
    ],
  }


def _corner(found) -> float | None:
  """How far off a law is of the far corner that was fitted without it.

  Root mean square, of log L; the runs with the most of all that varies. None
  where too few are left.
  """
  seen = found.points.take(np.flatnonzero(~found.unseen))
  far = np.ones(len(seen.loss), bool)
  for v in (seen.parameters, seen.experts, seen.tokens):
    # Active parameters differ a little by the router's, which grows with E.
    far &= v > 0.7 * v.max()
  cells = seen.take(np.flatnonzero(~far)).cells()
  if not far.any() or len(cells) < len(laws.FORMS[found.law.form].names):
    return None
  return laws.left_out(seen, found.law.form, far)[0]


def _groups(found, residuals) -> dict[str, float]:
  """Mean residual of the runs of a panel, an E, a length."""
  groups: dict[str, list[float]] = {}
  p = found.points
  for i in np.flatnonzero(~found.unseen):
    for key in (
      found.labels[i],
      f'E = {p.experts[i]:.0f}',
      f'{p.tokens[i] / 1e6:.1f} million tokens',
    ):
      groups.setdefault(key, []).append(residuals[i])
  return {k: float(np.mean(v)) for k, v in groups.items()}


def told(found: Found) -> tuple[str, list[tuple[str, ...]]]:
  """A paragraph of how well the law fits, and the table of its parameters."""
  kept = record(found)
  worst = max(kept['residuals'].items(), key=lambda kv: abs(kv[1]))
  text = (
    f'`{found.law.form}` of {kept["runs"]} runs: the loss is off by '
    f'{found.law.error:.2%} (root mean square). Worst on average: {worst[0]}, '
    f'{worst[1]:+.2%}.'
  )
  if kept['corner'] is not None:
    text += (
      ' Fitted without the largest models with the most experts and tokens, it '
      f'is off by {kept["corner"]:.2%} there.'
    )
  if kept['unseen']:
    off = ', '.join(f'{v["residual"]:+.2%}' for v in kept['unseen'])
    text += f' Runs that the fit did not see are off by {off}.'
  if loose := _loose(found.law):
    text += (
      f' These runs do not fix {", ".join(f"`{name}`" for name in loose)}: the '
      'interval has 0 in it, or ends at a bound of the fit.'
    )
  return text, [tuple(r) for r in laws.table(found.law)]


def _loose(law: laws.Law) -> list[str]:
  """Parameters whose interval says no more than where they were looked for."""
  form, found = laws.FORMS[law.form], []
  for name, least, most in zip(form.names, form.low, form.high):
    low, high = law.intervals[name]
    if low <= 0 <= high or low <= least or high >= most:
      found.append(name)
  return found


def draw(found: Found) -> mpl_figure.Figure:
  """Its figure."""
  p = found.points
  return plots.draw(
    found.spec['title'],
    found.labels,
    p.parameters,
    p.experts,
    p.tokens,
    p.loss,
    found.unseen,
    found.law.loss,
  )
