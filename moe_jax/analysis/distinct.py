"""Sets of distinct experts that are drawn with no regard to one another.

K choices of a token are never the same expert, so that draws by themselves are
no null for which go together. The distribution over sets of K of E that has
given loads and is otherwise as random as can be (of the greatest entropy) has a
weight w_i for each expert,

  P(S) = prod_{i in S} w_i / R_K,   R_k the k-th symmetric polynomial of w

the conditional Poisson sample of Jaroslav Hajek, "Asymptotic Theory of
Rejective Sampling", 1964, and Xiang-Hui Chen, Arthur P. Dempster and Jun S.
Liu, "Weighted Finite Population Sampling to Maximize Entropy", Biometrika 1994,
81, 3. All sums are of positive terms. Letters: E experts, K of a set, T tokens.
"""

import numpy as np

_ROUNDS, _CLOSE = 500, 1e-8
_SURE = 1e-9  # an expert that is in every set has odds of 1 / _SURE


def polynomials(w_E: np.ndarray, K: int, left_out_XE: np.ndarray) -> np.ndarray:
  """f64 [X, K + 1], R_0 to R_K of w without the experts left out."""
  R_XK = np.zeros((len(left_out_XE), K + 1))
  R_XK[:, 0] = 1
  for e, w in enumerate(w_E):
    w_X1 = np.where(left_out_XE[:, e, None], 0, w)
    R_XK[:, 1:] += w_X1 * R_XK[:, :-1]
  return R_XK


def chances(w_E: np.ndarray, K: int) -> np.ndarray:
  """f64 [E], in how many of all sets an expert is."""
  R_EK = polynomials(w_E, K, np.eye(len(w_E), dtype=bool))
  inside_E = w_E * R_EK[:, K - 1]
  return inside_E / (inside_E + R_EK[:, K])


def weights(load_E: np.ndarray, K: int) -> np.ndarray:
  """f64 [E], w for which `chances` are the loads; their sum is K.

  Args:
    load_E: how many tokens have each expert, all of K different ones.
    K: 1 to E.
  """
  load_E = np.asarray(load_E, np.float64)
  wanted_E = np.minimum(K * load_E / load_E.sum(), 1 - _SURE)
  odds_E = wanted_E / (1 - wanted_E)
  w_E = odds_E * (K / odds_E.sum())
  for _ in range(_ROUNDS):
    found_E = np.clip(chances(w_E, K), 1e-30, 1 - _SURE / 2)
    if np.abs(found_E - wanted_E).max() < _CLOSE:
      break
    # Of two experts for one place each step would go twice as far as it has to,
    # and back: the root.
    w_E = w_E * np.sqrt(odds_E * (1 - found_E) / found_E)
    w_E *= K / w_E.sum()
  return w_E


def pairs(w_E: np.ndarray, K: int) -> np.ndarray:
  """f64 [E, E], in how many of all sets two experts are; 0 on the diagonal."""
  E = len(w_E)
  if K < 2:
    return np.zeros((E, E))
  one_EE = np.eye(E, dtype=bool)
  left_out = (one_EE[:, None] | one_EE[None]).reshape(E * E, E)
  R_EE = polynomials(w_E, K - 2, left_out)[:, -1].reshape(E, E)
  all_R = polynomials(w_E, K, np.zeros((1, E), bool))[0, K]
  return np.where(one_EE, 0, w_E[:, None] * w_E * R_EE / all_R)


def draw(
  w_E: np.ndarray, K: int, T: int, rng: np.random.Generator
) -> np.ndarray:
  """bool [T, E], the sets of T tokens."""
  E = len(w_E)
  R_eK = np.zeros((E + 1, K + 1))  # of the experts from e on
  R_eK[:, 0] = 1
  for e in reversed(range(E)):
    R_eK[e, 1:] = R_eK[e + 1, 1:] + w_E[e] * R_eK[e + 1, :-1]
  under_eK = np.where(R_eK > 0, R_eK, 1)
  taken_TE, open_T = np.zeros((T, E), bool), np.full(T, K)
  for e in range(E):
    chance_K = w_E[e] * R_eK[e + 1, :-1] / under_eK[e, 1:]
    chance_K = np.concatenate([[0], chance_K])
    taken_TE[:, e] = rng.random(T) < chance_K[open_T]
    open_T -= taken_TE[:, e]
  return taken_TE


def pair_counts(
  load_KE: np.ndarray,
  share_K: np.ndarray,
  draws: int,
  sample: int,
  rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
  """Tokens that have two experts at once, by chance.

  Args:
    load_KE: choices of each expert by tokens that have 0, 1, ... choices.
    share_K: of their pairs, the share that is counted.
    draws: how often it is drawn.
    sample: tokens that are drawn, at most; what is off from the mean is then
      made as large as for the tokens that there are.
    rng: of the draws.

  Returns:
    The mean, f64 [E, E], and what is drawn, [draws, E, E].
  """
  E = load_KE.shape[1]
  mean_EE, drawn_WEE = np.zeros((E, E)), np.zeros((draws, E, E))
  for k, load_E in enumerate(load_KE):
    tokens = load_E.sum() // max(k, 1)
    if k < 2 or not tokens:
      continue
    w_E, T = weights(load_E, k), min(tokens, sample)
    chance_EE = share_K[k] * pairs(w_E, k)
    mean_EE += tokens * chance_EE
    for drawn_EE in drawn_WEE:
      x_TE = draw(w_E, k, T, rng).astype(np.float32)
      found_EE = np.triu(x_TE.T @ x_TE, 1).astype(np.int64)
      found_EE = rng.binomial(found_EE, share_K[k])
      off_EE = found_EE + found_EE.T - T * chance_EE
      drawn_EE += tokens * chance_EE + np.sqrt(tokens / T) * off_EE
  return mean_EE, drawn_WEE
