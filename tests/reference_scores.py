"""Loop-written references of routers that choose by a token's own scores."""

import math

import numpy as np

from tests.oracles import Choice, largest as best, linear, sigmoid, softmax


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


def top_p(x_TD, params, bias_E, mask_T, *, p, k=0, strict=False):
  """The shortest prefix that holds p, an expert at a time."""
  logits = linear(x_TD, params)
  probs = softmax(logits)
  T, E = probs.shape
  expert, weight = np.full((T, k or E), E), np.zeros((T, k or E))
  for t in range(T):
    held = 0.0
    for j, e in enumerate(best(probs[t] + bias_E, k or E)):
      expert[t, j], weight[t, j] = e, probs[t, e]
      held += probs[t, e]
      if held > p or (held == p and not strict):
        break
  return Choice(expert, weight, probs, logits)


def relu(x_TD, params, bias_E, mask_T, *, k=0):
  """Every expert above the bar, largest first."""
  logits = linear(x_TD, params)
  T, E = logits.shape
  expert, weight = np.full((T, k or E), E), np.zeros((T, k or E))
  probs = np.zeros((T, E))
  for t in range(T):
    for j, e in enumerate(best(logits[t] + bias_E, k or E)):
      if logits[t, e] + bias_E[e] > 0:
        expert[t, j], weight[t, j] = e, max(logits[t, e], 0.0)
    gates = [max(l, 0.0) for l in logits[t]]
    if sum(gates):
      probs[t] = np.array(gates) / sum(gates)
  return Choice(expert, weight, probs, logits)


def cosine(x_TD, params, bias_E, mask_T, *, k):
  """Cosines by the angle's definition, over the temperature."""
  low, centers = x_TD @ params['kernel'], params['experts']
  logits = np.zeros((len(low), len(centers)))
  for t, a in enumerate(low):
    for e, b in enumerate(centers):
      logits[t, e] = a @ b / math.sqrt((a @ a) * (b @ b))
  logits /= max(1 / params['sharpness'][0], 0.01)
  probs = softmax(logits)
  expert = np.array([best(p + bias_E, k) for p in probs])
  weight = np.take_along_axis(probs, expert, 1)
  if k > 1:
    weight /= weight.sum(1, keepdims=True)
  return Choice(expert, weight, probs, logits)


def smooth_step(x, g):
  """By cases, as COMET writes it."""
  if x <= -g / 2:
    return 0.0
  if x >= g / 2:
    return 1.0
  return -2 * x**3 / g**3 + 3 * x / (2 * g) + 0.5


def _mixed(gates, bias_E):
  """Every expert with a gate above 0, in the order of gate + bias."""
  T, E = gates.shape
  expert, weight = np.full((T, E), E), np.zeros((T, E))
  for t in range(T):
    used = [e for e in best(gates[t] + bias_E, E) if gates[t, e] > 0]
    expert[t, : len(used)] = used
    weight[t, : len(used)] = gates[t, used]
  probs = gates / gates.sum(1, keepdims=True)
  return Choice(expert, weight, probs, np.log(np.maximum(probs, 1e-6)))


def dselect_k(x_TD, params, bias_E, mask_T, *, k, width=1.0):
  """Each selector reads the expert's number bit by bit, the lowest first."""
  T, E = len(x_TD), len(bias_E)
  bits = math.ceil(math.log2(E))
  gates = np.zeros((T, E))
  for t in range(T):
    mix = softmax(x_TD[t] @ params['mix'])
    z = x_TD[t] @ params['bits']
    for j in range(k):
      for e in range(E):
        r = 1.0
        for b, digit in enumerate(reversed(format(e, f'0{bits}b'))):
          s = smooth_step(z[j * bits + b], width)
          r *= s if digit == '1' else 1 - s
        gates[t, e] += mix[j] * r
  return _mixed(gates, bias_E)


def comet(x_TD, params, bias_E, mask_T, *, k, width=1.0):
  """Each tree from its leaves to the root, by parents."""
  T, E = len(x_TD), len(bias_E)
  gates = np.zeros((T, E))
  for t in range(T):
    z = x_TD[t] @ params['splits'] + params['split_bias']
    a = x_TD[t] @ params['leaves']
    score = np.full((k, E), -np.inf)
    for j in range(k):
      for e in range(E):
        node, reach = e + E - 1, 1.0
        while node:
          parent = (node - 1) // 2
          s = smooth_step(z[j * (E - 1) + parent], width)
          reach *= s if node == 2 * parent + 1 else 1 - s
          node = parent
        if reach > 0:
          score[j, e] = a[j * E + e] + math.log(reach)
    gates[t] = softmax(score.reshape(-1)).reshape(k, E).sum(0)
  return _mixed(gates, bias_E)
