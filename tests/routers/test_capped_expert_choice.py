"""Expert choice with a cap by token: section 3.3's plan, by its dual."""

import math

import numpy as np

from tests.methods import Row
from tests.oracles import by_experts, largest, linear, softmax


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
  x_TD, params, bias_E, seen, *, choices, cap, entropy, **solver
):
  logits = linear(x_TD, params)
  probs = softmax(logits)
  T, E = probs.shape
  rows, real = math.ceil(choices * T / E), np.flatnonzero(seen['mask_T'])
  if rows >= len(real):  # everything is taken
    chosen = [list(real)] * E
  else:
    plan = capped_plan(
      probs[real], min(rows, cap * len(real) / E), cap, entropy
    )
    chosen = [[real[i] for i in largest(plan[:, e], rows)] for e in range(E)]
  chosen = [sorted(c, key=lambda t: -probs[t, e]) for e, c in enumerate(chosen)]
  return by_experts(chosen, probs, logits)


ROWS = (
  Row(
    'capped_expert_choice(choices=2, cap=2, entropy=0.05, iterations=300)',
    '2202.09368',
    capped_expert_choice,
    causal=False,
    by_expert=True,
  ),
)
