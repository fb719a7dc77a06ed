"""What NumPy oracles share; nothing here imports jax or a method.

A router's oracle is a function (x_TD, params, bias_E, seen, **options) ->
Choice, float64, written from its paper's equations with loops over tokens and
experts. `seen` is a dict of what the context brings, as NumPy arrays: 'mask_T',
'ids_T', 'forced_TK', 'carry', 'step', 'layer', the features 'down', 'mean' and
'variance'; 'local' is how many of the experts are zero-computation ones.
`options` are those that the row's call string names: the oracle has the
method's defaults.

A balancing rule's is (choices, masks, **options) -> the loss of one segment of
tokens, whose groups are a list of `Choice` and one of masks [T]; the last LOCAL
experts are zero-computation ones. Of a rule that reads the router's matrix that
comes first: (R_DE, choices, masks, **options).

An expert kind's is (params, e, x_D, **options) -> y_D, e's result for a token;
of zero-computation experts, too.
"""

import dataclasses
import math

import numpy as np

from moe_jax.parity import loops
from moe_jax.parity.loops import choose as largest, softmax

LOCAL = 2


@dataclasses.dataclass
class Choice:
  """expert_TK, weight_TK of a group (before drops), and its probabilities."""

  expert: np.ndarray  # E is nobody
  weight: np.ndarray
  probs: np.ndarray | None = None
  logits: np.ndarray | None = None
  renormalize_kept: bool = False
  smooth_load: np.ndarray | None = None
  first_fit: bool = False
  weight_on: str = 'output'
  priority: np.ndarray | None = None  # [T, K], where it is not rank-major


def linear(x_TD, params):
  return x_TD.astype(np.float64) @ np.asarray(params['kernel'], np.float64)


def sigmoid(x):
  return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def most_probable(logits_TE, bias_E, k):
  """The k largest of a softmax plus the bias, with their probabilities."""
  probs = softmax(logits_TE)
  expert = np.array([largest(p + bias_E, k) for p in probs])
  weight = np.take_along_axis(probs, expert, 1)
  return Choice(expert, weight, probs, logits_TE)


def softmax_of_chosen(scores_TE, bias_E, k):
  """The k largest scores plus the bias, weighted by a softmax over them."""
  expert = np.array([largest(s + bias_E, k) for s in scores_TE])
  weight = softmax(np.take_along_axis(scores_TE, expert, 1))
  return Choice(expert, weight, softmax(scores_TE), scores_TE)


def every_gate(gates_TE, bias_E):
  """Every expert with a gate above 0, in the order of gate + bias."""
  T, E = gates_TE.shape
  expert, weight = np.full((T, E), E), np.zeros((T, E))
  for t in range(T):
    used = [e for e in largest(gates_TE[t] + bias_E, E) if gates_TE[t, e] > 0]
    expert[t, : len(used)] = used
    weight[t, : len(used)] = gates_TE[t, used]
  probs = gates_TE / gates_TE.sum(1, keepdims=True)
  return Choice(expert, weight, probs, np.log(np.maximum(probs, 1e-6)))


def smooth_step(x, width):
  """By cases, as COMET writes it."""
  if x <= -width / 2:
    return 0.0
  if x >= width / 2:
    return 1.0
  return -2 * x**3 / width**3 + 3 * x / (2 * width) + 0.5


def by_experts(chosen, probs, logits):
  """From each expert's tokens, the best first: a column for each expert."""
  T, E = probs.shape
  expert, weight = np.full((T, E), E), np.zeros((T, E))
  priority = np.zeros((T, E), int)
  for e, tokens in enumerate(chosen):
    for rank, t in enumerate(tokens):
      expert[t, e], weight[t, e], priority[t, e] = e, probs[t, e], rank
  return Choice(expert, weight, probs, logits, priority=priority)


def seat(choice: Choice, mask_T, capacity, key=lambda t, j: (j, t)):
  """First come, first served; who comes first is (token, choice) by `key`."""
  T, K = choice.expert.shape
  if choice.priority is not None:
    key = lambda t, j: choice.priority[t, j]
  nobody = (
    choice.expert.max() + 1 if choice.probs is None else choice.probs.shape[1]
  )
  edges = [
    (t, j)
    for t, j in sorted(np.ndindex(T, K), key=lambda edge: key(*edge))
    if mask_T[t] and choice.expert[t, j] != nobody
  ]
  queue = [(t, choice.expert[t, j]) for t, j in edges]
  kept = np.zeros((T, K), bool)
  for i in loops.seated(queue, capacity, choice.first_fit):
    kept[edges[i]] = True
  weight = choice.weight * kept
  if choice.renormalize_kept:
    for t in range(T):
      if weight[t].sum() > 0:
        weight[t] /= weight[t].sum()
  return kept, weight


def moe(x_GTD, params, bias_E, route, expert, mask_GT, capacity):
  """The whole layer, a group at a time: y_GTD, kept_GTK, choices by group."""
  x_GTD = x_GTD.astype(np.float64)
  y, kept_all, choices = np.zeros_like(x_GTD), [], []
  for g in range(x_GTD.shape[0]):
    choice = route(x_GTD[g], params, bias_E, {'mask_T': mask_GT[g]})
    kept, weight = seat(choice, mask_GT[g], capacity)
    for t, j in zip(*np.nonzero(kept)):
      e, w, x_D = choice.expert[t, j], weight[t, j], x_GTD[g, t]
      after = choice.weight_on == 'output'
      y[g, t] += w * expert(e, x_D) if after else expert(e, w * x_D)
    kept_all.append(kept)
    choices.append(choice)
  return y, np.array(kept_all), choices


ACTIVATIONS = {
  'relu': lambda x: np.maximum(x, 0),
  'silu': lambda x: x / (1 + np.exp(-x)),
  'gelu': lambda x: (
    0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
  ),
  'gelu_exact': lambda x: (
    0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
  ),
}


def real_tokens(choices, masks):
  """(choice, t) of the tokens that are no padding, of a segment's groups."""
  return [(c, t) for c, m in zip(choices, masks) for t in np.flatnonzero(m)]


def shares(choices, masks):
  """Each expert's share of the assignments, and its mean affinity."""
  tokens = real_tokens(choices, masks)
  E = choices[0].probs.shape[-1]
  f, P, edges = np.zeros(E), np.zeros(E), 0
  for choice, t in tokens:
    for e in choice.expert[t]:
      f[e] += 1
      edges += 1
    P += choice.probs[t]
  return f / edges, P / len(tokens)


def squared_cv(v_E):
  """Variance over the squared mean."""
  return (np.std(v_E) / np.mean(v_E)) ** 2


def entropy(p):
  return -sum(v * math.log(v) for v in p if v > 0)
