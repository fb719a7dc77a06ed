"""Whether harder tokens use more experts: their number against the loss.

Huang et al., "Harder Tasks Need More Experts", 2024, arXiv:2403.07652, section
4 (top-p); Zeng et al., "AdaMoE", 2024, arXiv:2406.13233; Jin et al., "MoE++",
2024, arXiv:2410.07348. 'value' is Pearson's correlation, over tokens, of the
loss of the next token with u, the choices of a layer that an expert computed
(not zero-computation ones, not dropped); 'model_...' takes the sum of u over
layers. Null: documents permuted, the loss being that of the SAME position in
the 1st to `shifts`-th document before, since early tokens are hard and may be
routed otherwise for other reasons: its mean, 'null_low' and 'null_high' over
shifts. Intervals: documents drawn again. nan where u never varies, as where K
is fixed and nothing is dropped.
"""

import dataclasses

import numpy as np

from moe_jax import registry
from moe_jax.analysis import records
from moe_jax.analysis.metrics import base

LONGEST = 8192  # positions of a document that the null knows


@registry.register
@dataclasses.dataclass(frozen=True)
class Difficulty(base.Metric):
  """shifts: documents before that a loss is taken from."""

  shifts: int = 8
  draws: int = 200
  seed: int = 0

  def start(self, schema):
    D, M = len(schema.documents), len(schema.layers)
    return {
      # Sums of 1, u, l, u^2, l^2, u l, by layer and of all layers.
      'own': np.zeros((D, 6, M + 1)),
      'null': np.zeros((self.shifts, 6, M + 1)),
      # Losses of the last documents, by position.
      'losses': np.full((self.shifts + 1, LONGEST), np.nan),
      'last': -1,
    }

  def add(self, state, part):
    used_nM = (part.cause == records.KEPT).sum(-1)
    used_nM = np.concatenate([used_nM, used_nM.sum(-1, keepdims=True)], 1)
    losses, rows = state['losses'], len(state['losses'])
    cuts = np.flatnonzero(np.diff(part.document)) + 1
    for at in np.split(np.arange(len(part)), cuts):
      d, position_n = int(part.document[at[0]]), part.position[at]
      if d != state['last']:
        losses[d % rows], state['last'] = np.nan, d
      state['own'][d] += _sums(used_nM[at], part.loss[at])
      near_n = position_n < LONGEST
      at, position_n = at[near_n], position_n[near_n]
      losses[d % rows, position_n] = part.loss[at]
      for s in range(1, min(self.shifts, d) + 1):
        theirs_n = losses[(d - s) % rows, position_n]
        state['null'][s - 1] += _sums(used_nM[at], theirs_n)
    return state

  def result(self, state, schema):
    D, domain_D = len(schema.documents), [d for d, _ in schema.documents]
    times = base.resample(D, self.draws, self.seed, domain_D)
    again = [_correlation(np.tensordot(t, state['own'], 1)) for t in times]
    null = [_correlation(v) for v in state['null'] if v[0, 0] > 1]
    found = {'value': _correlation(state['own'].sum(0))} | base.interval(again)
    if null:
      found |= {'null': np.mean(null, 0)} | base.interval(null, 'null_')
    layers = {k: v[:-1] for k, v in found.items()}
    return layers | {f'model_{k}': v[-1] for k, v in found.items()}


def _sums(used_nM, loss_n):
  """f64 [6, M] over the tokens that have a loss."""
  real_n = np.isfinite(loss_n)
  u, v = used_nM[real_n].astype(float), loss_n[real_n, None].astype(float)
  terms = np.ones_like(u), u, v + 0 * u, u**2, v**2 + 0 * u, u * v
  return np.stack([t.sum(0) for t in terms])


def _correlation(sums):
  n, u, v, uu, vv, uv = sums / np.maximum(sums[0], 1)
  var_u, var_v = np.maximum(uu - u**2, 0), np.maximum(vv - v**2, 0)
  # Rounding leaves a little of what never varies.
  varies = (var_u > 1e-9 * uu) & (var_v > 1e-9 * vv) & (n > 0)
  scale = np.sqrt(np.where(varies, var_u * var_v, np.nan))
  return (uv - u * v) / scale
