"""Loop-written references of routers that see the whole group."""

import math

import numpy as np
from scipy import optimize

from tests.oracles import Choice, largest as best, linear, sigmoid, softmax


def by_experts(chosen, probs, logits):
  """From each expert's tokens, the best first: a column for each expert."""
  T, E = probs.shape
  expert, weight = np.full((T, E), E), np.zeros((T, E))
  priority = np.zeros((T, E), int)
  for e, tokens in enumerate(chosen):
    for rank, t in enumerate(tokens):
      expert[t, e], weight[t, e], priority[t, e] = e, probs[t, e], rank
  return Choice(expert, weight, probs, logits, priority=priority)


def expert_choice(x_TD, params, bias_E, mask_T, *, choices):
  """Zhou et al., equation 1: each expert's largest, real tokens only."""
  logits = linear(x_TD, params)
  probs = softmax(logits)
  T, E = probs.shape
  rows, real = math.ceil(choices * T / E), np.flatnonzero(mask_T)
  chosen = [
    [real[i] for i in best(probs[real, e], min(rows, len(real)))]
    for e in range(E)
  ]
  return by_experts(chosen, probs, logits)


def capped_plan(scores_TE, rows, cap, entropy, iterations=3000):
  """A [T, E] of section 3.3 by projected gradient ascent on its dual.

  Not the alternating projections of the code: A = clip(exp((S - f_e - g_t) /
  entropy)) with f free by expert and g >= 0 by token; each is found by
  bisection, the other held fixed.
  """
  T, E = scores_TE.shape
  f, g = np.zeros(E), np.zeros(T)
  plan = lambda: np.minimum(
    1.0, np.exp(np.minimum((scores_TE - f - g[:, None]) / entropy, 1.0))
  )
  for _ in range(iterations):
    for e in range(E):
      low, high = -5.0, 5.0
      for _ in range(60):
        f[e] = (low + high) / 2
        low, high = (f[e], high) if plan()[:, e].sum() > rows else (low, f[e])
    for t in range(T):
      g[t] = 0
      if plan()[t].sum() > cap:
        low, high = 0.0, 10.0
        for _ in range(60):
          g[t] = (low + high) / 2
          low, high = (g[t], high) if plan()[t].sum() > cap else (low, g[t])
    if abs(plan().sum(0) - rows).max() < 1e-6:
      break
  return plan()


def capped_expert_choice(
  x_TD, params, bias_E, mask_T, *, choices, cap, entropy
):
  logits = linear(x_TD, params)
  probs = softmax(logits)
  T, E = probs.shape
  rows, real = math.ceil(choices * T / E), np.flatnonzero(mask_T)
  if rows >= len(real):  # everything is taken
    chosen = [list(real)] * E
  else:
    plan = capped_plan(
      probs[real], min(rows, cap * len(real) / E), cap, entropy
    )
    chosen = [[real[i] for i in best(plan[:, e], rows)] for e in range(E)]
  chosen = [sorted(c, key=lambda t: -probs[t, e]) for e, c in enumerate(chosen)]
  return by_experts(chosen, probs, logits)


def base_layer(x_TD, params, bias_E, mask_T):
  """SciPy's assignment of the real tokens to the seats of the experts."""
  logits = linear(x_TD, params)
  T, E = logits.shape
  real = np.flatnonzero(mask_T)
  seats = -(-len(real) // E)
  columns = np.repeat(logits[real] + bias_E, seats, axis=1)
  row, column = optimize.linear_sum_assignment(columns, maximize=True)
  expert = np.full((T, 1), E)
  expert[real[row], 0] = column // max(seats, 1)
  weight = np.zeros((T, 1))
  for t in real:
    weight[t] = sigmoid(logits[t, expert[t, 0]])
  return Choice(expert, weight, softmax(logits), logits)


def sinkhorn(
  x_TD, params, bias_E, mask_T, *, k, score='softmax', iterations=20
):
  """Rows and columns of exp(logits) scaled in turn, the columns last."""
  logits = linear(x_TD, params)
  T, E = logits.shape
  real = np.flatnonzero(mask_T)
  plan = np.exp(logits[real] + bias_E)
  for _ in range(iterations):
    for t in range(len(plan)):
      plan[t] /= plan[t].sum()
    for e in range(E):
      plan[:, e] *= len(real) / E / max(plan[:, e].sum(), 1e-300)
  expert, weight = np.full((T, k), E), np.zeros((T, k))
  gates = softmax(logits) if score == 'softmax' else sigmoid(logits)
  for i, t in enumerate(real):
    expert[t] = best(plan[i], k)
    weight[t] = gates[t, expert[t]]
  return Choice(expert, weight, softmax(logits), logits)
