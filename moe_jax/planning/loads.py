"""Loads of experts, simulated or recorded, and what becomes of them."""

import math
import pathlib
from collections.abc import Mapping

import numpy as np

from moe_jax import json_files
from moe_jax.errors import UserError
from moe_jax.planning import dispatches, layers

_TOKENS, _ROUNDS, _STEPS = 4096, 12, 64
METRICS = 'metrics.jsonl'


def read(path: str) -> np.ndarray:
  """f64 [layers, E], the share of its layer's assignments that an expert had.

  Args:
    path: a run's workdir; its `metrics.jsonl`, or JSON lines like those, whose
      'moe/load' is a list of E numbers for each layer (the mean over the last
      tenth of the lines is taken); or JSON, a list of such lists.

  Raises:
    ValueError: no loads in it, with the line that is wrong.
    FileNotFoundError: no such file.
  """
  file = pathlib.Path(path)
  file = file / METRICS if file.is_dir() else file
  rows = []
  for i, line in enumerate(_values(file)):
    load = line.get('moe/load') if isinstance(line, dict) else line
    if load is None:
      continue
    try:
      load_NE = np.array(load, np.float64)
    except (ValueError, TypeError, OverflowError):
      load_NE = np.empty(0)
    good = load_NE.ndim == 2 and load_NE.size and np.isfinite(load_NE).all()
    if not good or (load_NE < 0).any() or not load_NE.sum(1).all():
      raise UserError(
        f'{file}, entry {i + 1}: loads must be a list of lists, one for each '
        'layer, of numbers not below 0 and not all 0'
      )
    if rows and load_NE.shape != rows[-1].shape:
      raise UserError(f'{file}, entry {i + 1}: loads change their shape')
    rows.append(load_NE / load_NE.sum(1, keepdims=True))
  if not rows:
    raise UserError(
      f"{file}: no loads; JSON lines with 'moe/load', as a run's {METRICS}, or "
      'a JSON list with a list of numbers for each layer are wanted'
    )
  return np.mean(rows[-max(1, len(rows) // 10) :], axis=0)


def _values(file: pathlib.Path) -> list:
  """The JSON values of a file: one, or one a line."""
  lines = json_files.lines(file)
  try:
    return [json_files.parse('\n'.join(lines), str(file))]
  except UserError:
    return [
      json_files.parse(line, f'{file}, line {i}')
      for i, line in enumerate(lines, 1)
    ]


def skewed(E: int, skew: float, rng: np.random.Generator) -> np.ndarray:
  """f64 [E], how much experts are liked: mean logits, normal of this width."""
  return skew * rng.normal(size=E)


def popularity(share_E: np.ndarray, K: float, rng) -> np.ndarray:
  """f64 [E], the mean logits at which K draws a token have these shares.

  `share_E` sums to 1. The logits of a token are these plus Gumbel noise, so
  that its first choice is a draw from their softmax, and the next are draws
  without replacement. One choice has a closed form; more are fitted.
  """
  # No expert is chosen twice by a token.
  want_E = np.clip(K * share_E, 1e-6, 1 - 1e-6)
  mean_E = np.log(want_E)
  k = math.ceil(K)
  if k == 1:
    return mean_E
  noise_TE = rng.gumbel(size=(_TOKENS, share_E.size))
  for _ in range(_ROUNDS):
    chosen_TK = np.argpartition(-(mean_E + noise_TE), k - 1)[:, :k]
    got_E = np.bincount(chosen_TK.reshape(-1), minlength=share_E.size) + 0.5
    mean_E += np.log(want_E * k / K) - np.log(got_E / _TOKENS)
  return mean_E


def logits(mean_E: np.ndarray, T: int, rng) -> np.ndarray:
  """f32 [T, E], logits of T tokens: the means and Gumbel noise."""
  return (mean_E + rng.gumbel(size=(T, mean_E.size))).astype(np.float32)


def fate(
  kept_QGE: np.ndarray,
  layer: layers.Layer,
  dispatch: dispatches.Dispatch,
  seed: int,
) -> Mapping[str, float]:
  """What a dispatch makes of the rows that got a seat.

  Args:
    kept_QGE: rows of each expert in simulated groups, of several layers Q.
    layer, dispatch: whose.
    seed: of the draws of a step's groups among those simulated.

  Returns:
    'empty', the part of the rows computed that hold no token; 'unused', the
    part of the rows held; 'clipped', the part of the seated that does not fit
    into a receive buffer; 'buffer_factor', the least at which all fit.
  """
  Q, G, E = kept_QGE.shape
  S, H = layer.axis, layer.axis * layer.groups
  computed = E * dispatch.capacity(layer)
  empty = 0.0
  if dispatch.padded:
    empty = 1 - kept_QGE.sum(2).mean() / computed
  R, clipped, most, seated, held = dispatch.rows(layer), 0, 0, 0, 0
  rng = np.random.default_rng(seed)
  for kept_GE in kept_QGE:
    for _ in range(max(1, _STEPS // Q)):
      group_H = rng.integers(G, size=H)
      rows_S = kept_GE[group_H].sum(0).reshape(S, -1).sum(1)
      seated, most = seated + rows_S.sum(), max(most, rows_S.max())
      held += S * R
      clipped += np.maximum(rows_S - R, 0).sum()
  return {
    'empty': float(empty),
    'unused': float(1 - min(1, seated / held)),
    'clipped': float(clipped / max(seated, 1)) if dispatch.clips else 0.0,
    'buffer_factor': float(most / layer.most_rows(layer.groups, E)),
  }
