"""Which device has which expert, and how many devices tokens then go to.

Letters: E experts, n tokens, K choices. Devices have equally many experts; -1
is none, of experts that are not placed and of nobody.
"""

import numpy as np
from scipy import special


def greedy(pair_EE: np.ndarray, devices: int) -> np.ndarray:
  """int [E]: experts that are chosen at once, together.

  A device begins with the busiest expert left, and takes the one left that its
  experts' tokens choose most often.

  Args:
    pair_EE: tokens that choose both, on the diagonal all of an expert.
    devices: a divisor of E.
  """
  E = len(pair_EE)
  place_E = np.full(E, -1)
  for d in range(devices):
    score_E = np.diagonal(pair_EE).astype(np.float64)
    together_E = np.zeros(E)
    for _ in range(E // devices):
      e = np.where(place_E < 0, score_E, -1).argmax()
      place_E[e] = d
      together_E += pair_EE[e]
      score_E = together_E
  return place_E


def saved(expert_nK: np.ndarray, place_E: np.ndarray) -> float:
  """1 - devices / choices, over all tokens; nan without a choice."""
  # The last place is nobody's.
  device_nK = np.sort(np.append(place_E, -1)[expert_nK], -1)
  sent_nK = device_nK >= 0
  new_nK = sent_nK & (np.diff(device_nK, axis=-1, prepend=-1) != 0)
  return 1 - new_nK.sum() / sent_nK.sum() if sent_nK.any() else np.nan


def saved_by_chance(
  expert_nK: np.ndarray, placed_E: np.ndarray, devices: int
) -> float:
  """The mean of `saved` over all placements of the experts that are placed."""
  used_n = np.append(placed_E, False)[expert_nK].sum(-1)
  if not used_n.any():
    return np.nan
  E = placed_E.sum()
  none_n = special.comb(E - E // devices, used_n) / special.comb(E, used_n)
  return 1 - (devices * (1 - none_n)).sum() / used_n.sum()
