"""Loop-written balancing rules: (choices, masks) -> the loss of a segment.

The zero-computation experts are the last LOCAL ones.
"""

import numpy as np

LOCAL = 2


def _shares(choices, masks):
  """Shares of the assignments, mean affinities."""
  E = choices[0].probs.shape[-1]
  f, P, edges, tokens = np.zeros(E), np.zeros(E), 0, 0
  for choice, mask in zip(choices, masks):
    for t in np.flatnonzero(mask):
      for e in choice.expert[t]:
        f[e] += 1
        edges += 1
      P += choice.probs[t]
      tokens += 1
  return f / edges, P / tokens


def null_loss(choices, masks):
  """AdaMoE: every null expert counts as their mean."""
  f, P = _shares(choices, masks)
  E = len(f)
  mean = sum(f[e] for e in range(E - LOCAL, E)) / LOCAL
  true = sum(f[e] * P[e] for e in range(E - LOCAL))
  return E * (true + sum(mean * P[e] for e in range(E - LOCAL, E)))


def heterogeneous_loss(choices, masks, tau=0.75):
  """MoE++, equation 7, over its least value."""
  f, P = _shares(choices, masks)
  E = len(f)
  eta = [1.0] * (E - LOCAL) + [tau] * LOCAL
  least = 1 / sum(1 / v for v in eta)
  return sum(eta[e] * f[e] * P[e] for e in range(E)) / least


def bip(scores_TE, q_E, k, iterations, clip=True):
  """Algorithm 1 by sorting; the dual of the experts."""
  T, E = scores_TE.shape
  q = q_E.copy()
  for _ in range(iterations):
    p = np.zeros(T)
    for t in range(T):
      p[t] = sorted(scores_TE[t] - q, reverse=True)[k]
      p[t] = max(p[t], 0) if clip else p[t]
    for e in range(E):
      q[e] = sorted(scores_TE[:, e] - p, reverse=True)[k * T // E]
      q[e] = max(q[e], 0) if clip else q[e]
  return q
