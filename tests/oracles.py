"""What NumPy oracles share; nothing here imports jax or a method.

A router's oracle is a function (x_TD, params, bias_E, seen, **options) ->
Choice, float64, written from its paper's equations with loops over tokens and
experts. `seen` is what the context brings, as NumPy arrays: mask_T, ids_T,
forced_TK, carry, the features 'down', 'mean' and 'variance'; 'local' is how
many of the experts are zero-computation ones. `options` are those that the
row's call string names: the oracle has the method's defaults.
"""

import dataclasses

import numpy as np


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


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def sigmoid(x):
  return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def largest(scores, k):
  """Places of the k largest, largest first, the first of equals."""
  return sorted(range(len(scores)), key=lambda e: (-scores[e], e))[:k]
