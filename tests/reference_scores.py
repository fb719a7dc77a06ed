"""Loop-written references of routers that choose by a token's own scores."""

import math

import numpy as np

from tests.reference import Choice, linear, softmax


def sigmoid(x):
  return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def best(scores, k):
  """Indices of the k largest, largest first, the first of equals."""
  return sorted(range(len(scores)), key=lambda e: (-scores[e], e))[:k]


def kept_softmax(x_TD, params, bias_E, mask_T, *, k, bias=False):
  """Softmax over the k largest logits (Shazeer, equation 3; gpt-oss)."""
  logits = linear(x_TD, params) + (params['bias'] if bias else 0)
  expert, weight = [], []
  for l in logits:
    chosen = best(l + bias_E, k)
    expert.append(chosen)
    weight.append(softmax(l[chosen]))
  return Choice(np.array(expert), np.array(weight), softmax(logits), logits)


def smooth_load(clean, noisy, std, k):
  """Shazeer et al., equation 9, an expert at a time."""
  E = len(clean)
  out = []
  for e in range(E):
    others = sorted((noisy[i] for i in range(E) if i != e), reverse=True)
    z = (clean[e] - others[k - 1]) / std[e]
    out.append(0.5 * math.erfc(-z / math.sqrt(2)))
  return np.array(out)


def group_limited(
  x_TD, params, bias_E, mask_T, *, k, groups, kept, by, score, scale, norm
):
  """DeepSeek-V2 (by='max') and V3 (by='top_2'): the best groups, then top-k."""
  logits = linear(x_TD, params)
  s = sigmoid(logits) if score == 'sigmoid' else softmax(logits)
  T, E = s.shape
  size = E // groups
  expert, weight = np.zeros((T, k), int), np.zeros((T, k))
  for t in range(T):
    q = s[t] + bias_E
    of_group = []
    for g in range(groups):
      inside = sorted(q[g * size : (g + 1) * size], reverse=True)
      of_group.append(inside[0] + (inside[1] if by == 'top_2' else 0))
    allowed = best(np.array(of_group), kept)
    q = np.where(np.isin(np.arange(E) // size, allowed), q, -np.inf)
    expert[t] = best(q, k)
    weight[t] = s[t, expert[t]]
    if norm:
      weight[t] /= weight[t].sum()
  return Choice(expert, scale * weight, s / s.sum(-1, keepdims=True), logits)


def llama4(x_TD, params, bias_E, mask_T, *, k):
  logits = linear(x_TD, params)
  expert = np.array([best(l + bias_E, k) for l in logits])
  s = sigmoid(logits)
  weight = np.take_along_axis(s, expert, 1)
  probs = s / s.sum(-1, keepdims=True)
  return Choice(expert, weight, probs, logits, weight_on='input')
