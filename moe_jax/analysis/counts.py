"""Numbers of tables of counts: what an expert tells of a row, and back.

Letters: R rows (ids, domains, documents), M layers, E experts, D documents.
"""

import numpy as np
from scipy import special, stats

from moe_jax.analysis.metrics import base

_ROWS = 1024  # rows at a time, so that no table is copied as floats


def entropy(count_ME: np.ndarray) -> np.ndarray:
  """f64 [...], of the shares along the last axis, in nats; nan of nothing."""
  count_ME = np.asarray(count_ME, np.float64)
  total_M = count_ME.sum(-1)
  with np.errstate(invalid='ignore', divide='ignore'):
    return np.log(total_M) - special.xlogy(count_ME, count_ME).sum(-1) / total_M


def mutual_information(count_RME: np.ndarray) -> np.ndarray:
  """f64 [M], plug-in mutual information of rows and experts, in nats.

  By layer, of a table of counts; biased upwards by about (R - 1) (E - 1) / 2N.
  """
  M = count_RME.shape[1]
  rows, cells = np.zeros(M), np.zeros(M)
  load_ME = np.zeros(count_RME.shape[1:])
  for start in range(0, len(count_RME), _ROWS):
    part_RME = count_RME[start : start + _ROWS].astype(np.float64)
    row_RM = part_RME.sum(-1)
    rows += special.xlogy(row_RM, row_RM).sum(0)
    cells += special.xlogy(part_RME, part_RME).sum((0, 2))
    load_ME += part_RME.sum(0)
  total_M = load_ME.sum(-1)
  with np.errstate(invalid='ignore', divide='ignore'):
    return entropy(load_ME) + (cells - rows) / total_M


def shares(count_ME: np.ndarray) -> np.ndarray:
  """f64, counts over their sum along the last axis; 0 of nothing."""
  total_M1 = count_ME.sum(-1, keepdims=True)
  return count_ME / np.maximum(total_M1, 1)


def variation(p_ME: np.ndarray, q_ME: np.ndarray) -> np.ndarray:
  """f64 [...], total variation distance along the last axis."""
  return np.abs(p_ME - q_ME).sum(-1) / 2


def grouped(count_DME: np.ndarray, weight_WGD: np.ndarray) -> np.ndarray:
  """f64 [W, G, M, E]: weighted sums of documents' counts.

  Args:
    count_DME: of each document.
    weight_WGD: how often each is in a group, W times anew.
  """
  W, G, D = weight_WGD.shape
  flat_DX = count_DME.reshape(D, -1).astype(np.float64)
  sums = weight_WGD.reshape(-1, D).astype(np.float64) @ flat_DX
  return sums.reshape(W, G, *count_DME.shape[1:])


def resampled(
  sum_DX: np.ndarray, draws: int, seed: int, group_D: np.ndarray | None = None
) -> np.ndarray:
  """f64 [draws, ...]: sums over documents, these drawn again: `base.resample`.

  nan where there is but one document.

  Args:
    sum_DX: of each document; those of which all are 0 are not drawn.
    draws: bootstraps.
    seed: of `base.generator`.
    group_D: within which documents are drawn again.
  """
  real_D = np.asarray(sum_DX).reshape(len(sum_DX), -1).any(-1)
  sum_DX = np.asarray(sum_DX, np.float64)[real_D]
  if len(sum_DX) < 2:
    return np.full((draws, *sum_DX.shape[1:]), np.nan)
  group_D = None if group_D is None else np.asarray(group_D)[real_D]
  times_WD = np.stack(list(base.resample(len(sum_DX), draws, seed, group_D)))
  return np.tensordot(times_WD.astype(np.float64), sum_DX, 1)


def adjusted_information(
  table_IJ: np.ndarray, draws: int, rng: np.random.Generator
) -> np.ndarray:
  """f64 [1 + draws], adjusted mutual information of a table of two labels.

  The first is the table's; the others those of random tables with its margins,
  whose mean is 0.
  """
  rows, columns = table_IJ.sum(1), table_IJ.sum(0)
  drawn = stats.random_table(rows, columns, seed=rng).rvs(draws)
  found = mutual_information(np.stack([table_IJ, *drawn], 1))
  chance, most = found[1:].mean(), (entropy(rows) + entropy(columns)) / 2
  return (found - chance) / np.where(most > chance, most - chance, np.nan)


def rates(sums: np.ndarray) -> np.ndarray:
  """[..., X] of [..., 1 + X]: all over the first; nan over 0."""
  return sums[..., 1:] / np.where(sums[..., :1] > 0, sums[..., :1], np.nan)


def ratios(sums: np.ndarray) -> np.ndarray:
  """[..., X] of [..., 2 X]: every second one over that before it; nan of 0."""
  under = sums[..., ::2]
  return sums[..., 1::2] / np.where(under > 0, under, np.nan)


def overlap(
  a_nMK: np.ndarray, b_nMK: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """[n, M] of two choices of tokens, -1 being nobody, no expert twice.

  Returns:
    How many both have, a has, any has; and the first over the last, 0 of none.
  """
  same = a_nMK[..., :, None] == b_nMK[..., None, :]
  shared_nM = (same & (a_nMK >= 0)[..., None]).sum((-1, -2))
  own_nM, its_nM = (a_nMK >= 0).sum(-1), (b_nMK >= 0).sum(-1)
  union_nM = own_nM + its_nM - shared_nM
  return shared_nM, own_nM, union_nM, shared_nM / np.maximum(union_nM, 1)
