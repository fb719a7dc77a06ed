"""The MoE layer as loops in NumPy, float64: one token, one seat at a time.

The oracle of `parity`, from the papers' equations; it knows nothing of edges,
buffers, devices or JAX. Routing: softmax, then the k largest (Shazeer et al.
2017, arXiv:1701.06538, section 2); seats: Switch Transformer (Fedus et al.
2021, arXiv:2101.03961, section 2.2 and appendix B), V-MoE (Riquelme et al.
2021, arXiv:2106.05974, section 4.1); losses: Switch Transformer, equations 4
to 6, and ST-MoE (Zoph et al. 2022, arXiv:2202.08906, equation 5).
"""

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Rules:
  """What a layer does, in the words of this file.

  Attributes:
    k: choices of a token.
    renormalize: 'no', or divide a token's weights by their sum 'before' or
      'after' it is known who has a seat.
    order: who is seated first: all first choices ('rank'), all choices of the
      first 'token', or as 'rank' but the 'surest' tokens before others.
    one_seat: a token takes its first choice that has room, and no other.
    on_input: weights multiply the experts' inputs, not their outputs.
    count_all: the load-balancing loss counts all choices, not the first.
  """

  k: int
  renormalize: str = 'no'
  order: str = 'rank'
  one_seat: bool = False
  on_input: bool = False
  count_all: bool = False

  def rows(self, factor: float | None, T: int, E: int) -> int:
    """Seats of an expert in a group of T tokens; None is one for each token."""
    if factor is None:
      return T
    k = 1 if self.one_seat else self.k
    return min(T, max(1, math.ceil(factor * T * k / E)))


def layer(
  arrays: Arrays, mask_GT: np.ndarray, rules: Rules, rows: int
) -> dict[str, Any]:
  """Runs the layer on float64 arrays.

  Args:
    arrays: 'x' [G, T, D], 'router' [D, E], 'bias' [E] on selection, and the
      experts' 'wi', 'bi', 'wo', 'bo'.
    mask_GT: False on padding.
    rules: see `Rules`.
    rows: seats of an expert in a group.

  Returns:
    'y' [G, T, D], 'kept' [G, T, E] (1 where the expert computes the token), and
    'aux' with the fields of types.MoEAux.
  """
  x_GTD = arrays['x']
  G, T, E = *mask_GT.shape, len(arrays['bias'])
  y_GTD, kept_GTE = np.zeros_like(x_GTD), np.zeros((G, T, E), int)
  load_E, causes = np.zeros(E, int), np.zeros(6, int)
  balance, sums, entropies, norms = 0.0, [], [], []
  used = np.zeros(17, int)
  for g in range(G):
    real = [t for t in range(T) if mask_GT[g, t]]
    logits_TE = x_GTD[g] @ arrays['router']
    probs_TE = softmax(logits_TE)
    choices = {t: choose(probs_TE[t] + arrays['bias'], rules.k) for t in real}
    kept = seat(choices, probs_TE, rules, rows)
    for t in real:
      weights = weigh(probs_TE[t], choices[t], kept[t], rules)
      for e in kept[t]:
        kept_GTE[g, t, e] = 1
        y_GTD[g, t] += expert(arrays, e, x_GTD[g, t], weights[e], rules)
      for e in choices[t][: 1 if rules.one_seat else rules.k]:
        load_E[e] += 1
      sums.append(np.log(np.exp(logits_TE[t]).sum()))
      norms.append(np.mean(logits_TE[t] ** 2))
      used[len(kept[t])] += 1
      entropies.append(-(probs_TE[t] * np.log(probs_TE[t])).sum())
      tried = 1 if rules.one_seat else rules.k
      causes += [len(kept[t]), tried - len(kept[t]), 0, 0, rules.k - tried, 0]
    causes[3] += (T - len(real)) * rules.k
    if real:
      counted = rules.k if rules.count_all else 1
      f_E = np.zeros(E)
      for t in real:
        for e in choices[t][:counted]:
          f_E[e] += 1 / (counted * len(real))
      # The mean over groups, by their real tokens.
      balance += E * (f_E * probs_TE[real].mean(0)).sum() * len(real)
  losses = {
    'switch_loss': balance / mask_GT.sum(),
    'z_loss': np.mean(np.square(sums)),
  }
  return {
    'y': y_GTD,
    'kept': kept_GTE,
    'aux': {
      'loss': 0.01 * losses['switch_loss'] + 0.001 * losses['z_loss'],
      'losses': losses,
      'stats': {
        'switch_loss': {'loss': balance, 'weight': mask_GT.sum()},
        'z_loss': {'loss': np.sum(np.square(sums)), 'weight': mask_GT.sum()},
        'loss_free_bias': {'load': load_E},
      },
      'load_E': load_E,
      'cause': causes,
      'entropy': np.mean(entropies),
      'health': {
        'tokens': mask_GT.sum(),
        'used': used,
        'bias': mask_GT.sum() * np.sqrt(np.mean(arrays['bias'] ** 2)),
        'entropy': np.sum(entropies),
        'square': np.sum(norms),
        'logsumexp': np.sum(sums),
      },
    },
  }


def softmax(logits_TE: np.ndarray) -> np.ndarray:
  e_TE = np.exp(logits_TE - logits_TE.max(-1, keepdims=True))
  return e_TE / e_TE.sum(-1, keepdims=True)


def choose(score_E: np.ndarray, k: int) -> list[int]:
  """The k experts of largest score, the best first, ties to the lower one."""
  return sorted(range(len(score_E)), key=lambda e: (-score_E[e], e))[:k]


def seat(
  choices: dict[int, list[int]], probs_TE: np.ndarray, rules: Rules, rows: int
) -> dict[int, list[int]]:
  """The experts of each token at which it has a seat."""
  surest = lambda t: -max(probs_TE[t, e] for e in choices[t])
  first = {
    'rank': lambda t, j: (j, t),
    'token': lambda t, j: (t, j),
    'surest': lambda t, j: (j, surest(t), t),
  }[rules.order]
  edges = [(t, j) for t in choices for j in range(rules.k)]
  edges.sort(key=lambda edge: first(*edge))
  queue = [(t, choices[t][j]) for t, j in edges]
  kept = {t: [] for t in choices}
  for i in seated(queue, rows, rules.one_seat):
    t, e = queue[i]
    kept[t].append(e)
  return kept


def seated(
  queue: Sequence[tuple[int, int]], rows: int, one_seat: bool = False
) -> list[int]:
  """Places in a queue of (token, expert) that find a seat: first come, first.

  With `one_seat` a token that has one takes no other.
  """
  taken, having, found = collections.Counter(), set(), []
  for i, (t, e) in enumerate(queue):
    if taken[e] < rows and not (one_seat and t in having):
      taken[e] += 1
      having.add(t)
      found.append(i)
  return found


def weigh(
  p_E: np.ndarray, chosen: list[int], kept: list[int], rules: Rules
) -> np.ndarray:
  """What each expert's output (or input) is multiplied by."""
  if rules.renormalize == 'before':
    return p_E / p_E[chosen].sum()
  if rules.renormalize == 'after' and kept:
    return p_E / p_E[kept].sum()
  return p_E


def expert(
  arrays: Arrays, e: int, x_D: np.ndarray, weight: float, rules: Rules
) -> np.ndarray:
  """Two layers with biases and tanh-GELU, weighted on one of its sides."""
  before, after = (weight, 1.0) if rules.on_input else (1.0, weight)
  h_F = before * x_D @ arrays['wi'][e] + arrays['bi'][e]
  inner = math.sqrt(2 / math.pi) * (h_F + 0.044715 * h_F**3)
  h_F = 0.5 * h_F * (1 + np.tanh(inner))
  return after * (h_F @ arrays['wo'][e] + arrays['bo'][e])
