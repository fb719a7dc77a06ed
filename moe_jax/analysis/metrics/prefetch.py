"""What a layer's choice tells of the next one's: what prefetching lives on.

Experts that are kept elsewhere can be fetched while the layer before computes,
if its choice tells of theirs (as "Mixtral offloading", Eliseev and Mazur, 2023,
arXiv:2312.17238, section 3.2, fetches by the next layer's router; here by
counts alone). X is the first choice in a layer, Y any of the K in the next one,
a pair each. P is counted on one half of the documents and judged on the other,
and the reverse; a text of one document is halved in blocks of 1,024 tokens.

  value = 1 - H(P(Y | X)) / H(P(Y)),  H a held-out cross-entropy
  hit   = share of Y among the K most likely by P(Y | X)

'value' is below 0 where X tells nothing: counting costs. 'hit_marginal' fetches
the K most loaded. Null: X of the token `lag` before, mostly of the same
document: what the text's topic tells, and no more. By pair of layers, M - 1.
Counts are smoothed towards the marginal by E of them. 'halves' are the values
of both, whose mean is 'value'. Undefined for one layer.
"""

import dataclasses

import numpy as np

from moe_jax import registry
from moe_jax.analysis.metrics import base

BLOCK = 1024


@registry.register
@dataclasses.dataclass(frozen=True)
class Prefetch(base.Metric):
  """lag: tokens."""

  lag: int = 64

  def start(self, schema):
    M, E = len(schema.layers), base.width(schema)
    # By own and lagged, half, pair of layers, X, Y.
    count = np.zeros((2, 2, max(M - 1, 0), E, E), np.int64)
    one = len(schema.documents) < 2
    return {'count': count, 'before': None, 'block': BLOCK if one else 0}

  def add(self, state, part):
    n, M, _ = part.expert.shape
    count, first_nM = state['count'], part.expert[:, :, 0]
    E, block = count.shape[-1], state['block']
    half_n = (part.position // block if block else part.document) % 2
    if state['before'] is None:
      state['before'] = np.full((self.lag, M), -1, first_nM.dtype)
    seen_nM = np.concatenate([state['before'], first_nM])
    state['before'] = seen_nM[n:]
    for of, x_nM in enumerate((first_nM, seen_nM[:n])):
      for m in range(M - 1):
        y_nK = part.expert[:, m + 1]
        real_nK = (y_nK >= 0) & (x_nM[:, m, None] >= 0)
        cell_nK = (half_n[:, None] * E + x_nM[:, m, None]) * E + y_nK
        pairs = np.bincount(cell_nK[real_nK], minlength=2 * E * E)
        count[of, :, m] += pairs.reshape(2, E, E)
    return state

  def result(self, state, schema):
    if len(schema.layers) < 2:
      return {'undefined': 'one layer'}
    K = schema.choices
    own, lagged = (
      [_judged(c[a], c[1 - a], K) for a in range(2)] for c in state['count']
    )
    both = np.array(own)
    value, hit, marginal = both.mean(0)
    null, null_hit, _ = np.mean(lagged, 0)
    return {
      'value': value,
      'null': null,
      'halves': both[:, 0],
      'hit_value': hit,
      'hit_null': null_hit,
      'hit_marginal': marginal,
    }


def _judged(seen_MXY, judged_MXY, K):
  """Share of the cross-entropy explained; hits of X, of the loads: [M] each."""
  E = seen_MXY.shape[-1]
  y_MY = seen_MXY.sum(1) + 1.0
  y_M1Y = (y_MY / y_MY.sum(-1, keepdims=True))[:, None]
  p_MXY = seen_MXY + E * y_M1Y
  p_MXY /= p_MXY.sum(-1, keepdims=True)
  total_M = judged_MXY.sum((1, 2))
  total_M = np.where(total_M > 0, total_M, np.nan)
  cost = lambda p: -(judged_MXY * np.log(p)).sum((1, 2)) / total_M

  def hits(p):
    best = np.argsort(-p, -1, kind='stable')[..., :K]
    best = np.broadcast_to(best, (*judged_MXY.shape[:2], best.shape[-1]))
    found = np.take_along_axis(judged_MXY, best, -1)
    return found.sum((1, 2)) / total_M

  return 1 - cost(p_MXY) / cost(y_M1Y), hits(p_MXY), hits(y_M1Y)
