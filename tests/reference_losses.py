"""Loop-written balancing losses of further papers; see reference_balancing.py.

Each is (choices, masks) -> the loss of a segment.
"""

import math

import numpy as np


def _tokens(choices, masks):
  """(choice, t) of the real tokens."""
  return [(c, t) for c, m in zip(choices, masks) for t in np.flatnonzero(m)]


def sequence_loss(choices, masks):
  """DeepSeek-V3, equations 17 to 20."""
  tokens = _tokens(choices, masks)
  E, K = choices[0].probs.shape[-1], choices[0].expert.shape[-1]
  loss = 0.0
  for i in range(E):
    f = P = 0.0
    for choice, t in tokens:
      s = choice.probs[t]
      better = sum(s[j] > s[i] for j in range(E))
      f += E / (K * len(tokens)) * (better < K)
      P += s[i] / sum(s) / len(tokens)
    loss += f * P
  return loss


def device_loss(choices, masks, devices):
  """DeepSeekMoE, equations 15 to 17."""
  tokens = _tokens(choices, masks)
  E, K = choices[0].probs.shape[-1], choices[0].expert.shape[-1]
  size, loss = E // devices, 0.0
  for d in range(devices):
    mine = range(d * size, (d + 1) * size)
    f = P = 0.0
    for i in mine:
      count = sum(i in choice.expert[t] for choice, t in tokens)
      f += E / (K * len(tokens)) * count / size
      P += sum(choice.probs[t][i] for choice, t in tokens) / len(tokens)
    loss += f * P
  return loss


def communication_loss(choices, masks, devices, limit):
  """DeepSeek-V2, equations 29 to 31."""
  tokens = _tokens(choices, masks)
  size = choices[0].probs.shape[-1] // devices
  loss = 0.0
  for d in range(devices):
    mine = range(d * size, (d + 1) * size)
    sent = sum(any(e in mine for e in c.expert[t]) for c, t in tokens)
    P = sum(c.probs[t][i] for c, t in tokens for i in mine) / len(tokens)
    loss += devices / (limit * len(tokens)) * sent * P
  return loss


def _entropy(p):
  return -sum(v * math.log(v) for v in p if v > 0)


def entropy_loss(choices, masks):
  """The dynamic loss of top-p routing."""
  return np.mean([_entropy(c.probs[t]) for c, t in _tokens(choices, masks)])


def mutual_information(choices, masks):
  """ModuleFormer: sum P log P less the mean of sum p log p."""
  mean = np.mean([c.probs[t] for c, t in _tokens(choices, masks)], 0)
  return entropy_loss(choices, masks) - _entropy(mean)


def top1_loss(choices, masks, temperature=0.1):
  """Sigma-MoE-Tiny's loss."""
  f, sure, tokens = 0.0, 0.0, _tokens(choices, masks)
  for choice, t in tokens:
    q = np.exp((choice.logits[t] - choice.logits[t].max()) / temperature)
    f, sure = f + q / q.sum() / len(tokens), sure + 1 / q.sum() / len(tokens)
  return len(f) * sum(v * v for v in f) / sure
