"""Scaling laws: loss by active parameters, experts and tokens, fitted.

Two forms, of n active parameters without embeddings, d training tokens and the
effective number of experts e of Clark et al., "Unified Scaling Laws for Routed
Language Models", ICML 2022, arXiv:2202.01169, equation 7 (recalled):

  1 / e = 1 / (E - 1 + 1 / (1 / e_start - 1 / e_max)) + 1 / e_max

`routed`: theirs, equation 6 (recalled), at one number of tokens:

  log L = a log n + b log e + c log n log e + k

`joint`: Ludziejewski et al., "Joint MoE Scaling Laws: Mixture of Experts Can Be
Memory Efficient", ICML 2025, arXiv:2502.05172, equation 3:

  L = a e^delta n^(alpha + gamma ln e) + b e^omega d^(beta + zeta ln e) + c

Both are fitted as their authors do, by a robust loss of log L. What differs: n,
d and e are taken as quotients to their geometric means over the runs, which
changes no prediction and makes the parameters comparable; intervals are of a
bootstrap over whole cells (all seeds of a model, width and length), since seeds
of a cell share the law's error.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import optimize

from moe_jax import registry
from moe_jax.errors import UserError

LEVEL = 0.95
# Of log L: beyond it a residual counts by its size, not by its square.
HUBER = 1e-2


@dataclasses.dataclass(frozen=True)
class Points:
  """Runs, as arrays [P].

  Attributes:
    parameters: active in a token, embeddings left out.
    experts: E; 1 is dense.
    tokens: of training.
    loss: held out, in nats.
  """

  parameters: np.ndarray
  experts: np.ndarray
  tokens: np.ndarray
  loss: np.ndarray

  def __post_init__(self):
    for f in dataclasses.fields(self):
      value = np.asarray(getattr(self, f.name), np.float64)
      object.__setattr__(self, f.name, value)
    shapes = {f.name: getattr(self, f.name).shape for f in self._fields()}
    if len(set(shapes.values())) > 1 or self.loss.ndim != 1:
      raise UserError(f'points of a law want equal lengths, not {shapes}')
    for f in self._fields():
      if not (getattr(self, f.name) > 0).all():
        raise UserError(f'{f.name} of the points of a law must be above 0')

  def _fields(self):
    return dataclasses.fields(self)

  def take(self, index: np.ndarray) -> 'Points':
    """Those at `index`."""
    return Points(*(getattr(self, f.name)[index] for f in self._fields()))

  def cells(self) -> list[np.ndarray]:
    """Indices of the points that differ in nothing but the seed."""
    keys = np.stack([self.parameters, self.experts, self.tokens], 1)
    _, of_P = np.unique(keys, axis=0, return_inverse=True)
    return [np.flatnonzero(of_P == i) for i in range(of_P.max() + 1)]


def effective_experts(experts, start: float, most: float) -> np.ndarray:
  """Clark et al.'s saturating number of experts; `start` at E = 1.

  Args:
    experts: E, at least 1.
    start, most: 0 < start < most, its values at E = 1 and for ever more E.
  """
  shift = 1.0 / (1.0 / start - 1.0 / most)
  return 1.0 / (1.0 / (np.asarray(experts) - 1.0 + shift) + 1.0 / most)


@dataclasses.dataclass(frozen=True)
class Form:
  """A law's form.

  Attributes:
    names: of its parameters.
    start: where the fit begins.
    log_loss: (parameters, log n, log e, log d) -> log L.
    low, high: bounds.
  """

  names: tuple[str, ...]
  start: tuple[float, ...]
  low: tuple[float, ...]
  high: tuple[float, ...]
  log_loss: Callable[..., np.ndarray]


def _routed(p, n, e, d):
  del d
  a, b, c, k = p
  return a * n + b * e + c * n * e + k


def _joint(p, n, e, d):
  a, alpha, gamma, delta, b, beta, zeta, omega, c = p
  # a, b and c are logarithms: all three terms are losses.
  terms = (
    a + delta * e + (alpha + gamma * e) * n,
    b + omega * e + (beta + zeta * e) * d,
    np.full_like(n, c),
  )
  return np.logaddexp.reduce(terms)


_FREE = (-4.0, 4.0)
FORMS = {
  'routed': Form(
    ('a', 'b', 'c', 'k'),
    (-0.05, -0.05, 0.0, 0.5),
    (-4.0,) * 4,
    (4.0,) * 4,
    _routed,
  ),
  'joint': Form(
    ('a', 'alpha', 'gamma', 'delta', 'b', 'beta', 'zeta', 'omega', 'c'),
    (-1.5, -0.2, 0.0, -0.1, -1.5, -0.3, 0.0, 0.0, 0.0),
    (-8.0, *(-4.0,) * 3, -8.0, *(-4.0,) * 3, -8.0),
    (3.0, *(4.0,) * 3, 3.0, *(4.0,) * 3, 3.0),
    _joint,
  ),
}


@dataclasses.dataclass(frozen=True)
class Law:
  """A fitted law.

  Attributes:
    form: its name.
    parameters: {name: value}; a, b and c of `joint` are logarithms of losses.
    intervals: {name: (low, high)}, 95 %, of the bootstrap; () without one.
    centre: geometric means of n and d, by which they are divided.
    experts: (e_start, e_max), as given.
    residuals: [P], log L of the runs less that of the law.
  """

  form: str
  parameters: Mapping[str, float]
  intervals: Mapping[str, tuple[float, float]]
  centre: tuple[float, float]
  experts: tuple[float, float]
  residuals: np.ndarray

  def loss(self, parameters, experts, tokens) -> np.ndarray:
    """Predicted losses, in nats."""
    n, d = (
      np.log(np.asarray(v, float) / c)
      for v, c in zip((parameters, tokens), self.centre)
    )
    e = np.log(effective_experts(experts, *self.experts))
    n, e, d = np.broadcast_arrays(n, e, d)
    values = tuple(self.parameters.values())
    return np.exp(FORMS[self.form].log_loss(values, n, e, d))

  @property
  def error(self) -> float:
    """Root of the mean squared residual, of log L."""
    return float(np.sqrt(np.mean(self.residuals**2)))


def fit(
  points: Points,
  form: str,
  *,
  experts: tuple[float, float] = (1.5, 128.0),
  draws: int = 0,
  seed: int = 0,
) -> Law:
  """Fits a law.

  Args:
    points: the runs.
    form: of FORMS.
    experts: (e_start, e_max) of `effective_experts`. They are given, not
      fitted: a grid of a few numbers of experts does not hold them.
    draws: of the bootstrap over cells; 0 leaves the intervals out.
    seed: of the draws.

  Raises:
    ValueError: an unknown form, or fewer cells than parameters.
  """
  if form not in FORMS:
    raise registry.unknown('form of a law', form, FORMS)
  cells, names = points.cells(), FORMS[form].names
  if len(cells) < len(names):
    raise UserError(
      f'the law {form!r} has {len(names)} parameters, and there are runs of '
      f'{len(cells)} models and lengths only'
    )
  centre = tuple(
    float(np.exp(np.log(v).mean())) for v in (points.parameters, points.tokens)
  )
  best = _minimise(points, form, centre, experts, FORMS[form].start)
  rng, drawn = np.random.default_rng(seed), []
  for _ in range(draws):
    chosen = rng.integers(0, len(cells), len(cells))
    again = points.take(np.concatenate([cells[i] for i in chosen]))
    drawn.append(_minimise(again, form, centre, experts, best))
  intervals = {}
  if drawn:
    tails = (0.5 - LEVEL / 2, 0.5 + LEVEL / 2)
    low, high = np.quantile(np.stack(drawn), tails, axis=0)
    intervals = {n: (float(a), float(b)) for n, a, b in zip(names, low, high)}
  values = {n: float(v) for n, v in zip(names, best)}
  law = Law(form, values, intervals, centre, experts, np.zeros(0))
  told = law.loss(points.parameters, points.experts, points.tokens)
  return dataclasses.replace(law, residuals=np.log(points.loss / told))


def _minimise(points, form, centre, experts, start) -> np.ndarray:
  f = FORMS[form]
  n = np.log(points.parameters / centre[0])
  d = np.log(points.tokens / centre[1])
  e = np.log(effective_experts(points.experts, *experts))
  wanted = np.log(points.loss)
  found = optimize.least_squares(
    lambda p: f.log_loss(p, n, e, d) - wanted,
    start,
    bounds=(f.low, f.high),
    loss='huber',
    f_scale=HUBER,
    x_scale='jac',
    max_nfev=5000,
  )
  return found.x


def left_out(
  points: Points, form: str, corner: np.ndarray, **options: Any
) -> tuple[float, np.ndarray]:
  """How a law fitted without some runs predicts them.

  Args:
    points: the runs.
    form: of FORMS.
    corner: bool [P], the runs that the fit does not see.
    **options: of `fit`.

  Returns:
    Root of the mean squared residual of log L there, and the residuals.
  """
  law = fit(points.take(np.flatnonzero(~corner)), form, **options)
  rest = points.take(np.flatnonzero(corner))
  told = law.loss(rest.parameters, rest.experts, rest.tokens)
  residuals = np.log(rest.loss / told)
  return float(np.sqrt(np.mean(residuals**2))), residuals


def table(law: Law) -> Sequence[tuple[str, str, str]]:
  """(parameter, value, interval) rows, for pages."""
  rows = []
  for name, value in law.parameters.items():
    low, high = law.intervals.get(name, (np.nan, np.nan))
    rows.append((name, f'{value:+.4f}', f'{low:+.4f} to {high:+.4f}'))
  return rows
