"""Co-activation: which experts a token has at once.

Niklas Muennighoff et al., "OLMoE: Open Mixture-of-Experts Language Models",
2024, arXiv:2409.02060, section 5.2, equation 6:

  matrix[l][i][j] = N_ij / N_i

of the tokens that choose i, the share that chooses j, too. Every row sums to
k - 1 where all tokens have k choices. The one number is what an expert's
closest partner has, each expert counting by its tokens: sum_i max_j N_ij /
sum_i N_i. pairs='adjacent' counts choices of neighbouring rank alone, as the
paper's code does and its figure 21 shows: rows sum to 2 (k - 1) / k.

The null has the same loads, and tokens with as many choices, distinct and
otherwise as random as can be (`analysis.distinct`), of whose pairs 2 / k are
adjacent. Partners of much load are close, and the largest of noisy numbers is
large: `null` is a mean of that number over draws.
Undefined for k = 1. What goes together may be placed together: `placement`.
"""

import dataclasses

import numpy as np

from moe_jax import registry
from moe_jax.analysis import distinct, nulls
from moe_jax.analysis.metrics import base
from moe_jax.errors import UserError

PAIRS = ('all', 'adjacent')


@registry.register
@dataclasses.dataclass(frozen=True)
class Coactivation(base.Metric):
  """Results: value, null, its interval, excess; matrix and null_matrix.

  Attributes:
    pairs: one of PAIRS.
    largest: experts, above which the matrices, E^2 numbers, are left out.
    draws: of the null, at least two.
    sample: tokens that are drawn, at most.
    seed: of the null.
  """

  pairs: str = 'all'
  largest: int = 64
  draws: int = 5
  sample: int = 16_384
  seed: int = 0

  def check(self):
    if self.pairs not in PAIRS:
      valid = ', '.join(PAIRS)
      raise UserError(f'coactivation: pairs={self.pairs!r}; valid: {valid}')

  def start(self, schema):
    M, E = len(schema.layers), base.width(schema)
    pair_MEE = np.zeros((M, E, E), np.int64)
    return pair_MEE, np.zeros((schema.choices + 1, M, E), np.int64)

  def add(self, state, part):
    (pair_MEE, load_kME), (_, M, K) = state, part.expert.shape
    reach = 1 if self.pairs == 'adjacent' else K
    used_nM = (part.expert >= 0).sum(-1)
    for m in range(M):
      own_nK = part.expert[:, m]
      for j in range(K):
        base.cross(load_kME[:, m], used_nM[:, m], own_nK[:, j])
        for k in range(j + 1, min(j + reach, K - 1) + 1):
          base.cross(pair_MEE[m], own_nK[:, j], own_nK[:, k])
    return state

  def result(self, state, schema):
    if schema.choices < 2:
      return {'undefined': 'one choice of a token'}
    load_kME, load_ME = state[1], state[1].sum(0)
    pair_MEE = state[0] + state[0].swapaxes(1, 2)
    share_k = np.ones(schema.choices + 1)
    if self.pairs == 'adjacent':
      share_k[2:] = 2 / np.arange(2, len(share_k))
    size = share_k, self.draws, self.sample, base.generator(self.seed)
    null = [distinct.pair_counts(k, *size) for k in load_kME.swapaxes(0, 1)]
    mean_MEE = np.stack([mean for mean, _ in null])
    drawn_WMEE = np.stack([drawn for _, drawn in null], 1)
    value_M = _closest(pair_MEE, load_ME)
    level = nulls.level(_closest(drawn_WMEE, load_ME))
    out = {'value': value_M, **level}
    out['excess'] = nulls.excess(value_M, level['null'])
    if base.width(schema) > self.largest:
      return out
    under_ME1 = np.where(load_ME > 0, load_ME, np.nan)[..., None]
    both = {'matrix': pair_MEE, 'null_matrix': mean_MEE}
    return out | {k: v / under_ME1 for k, v in both.items()}


def _closest(pair_MEE, load_ME):
  total_M = load_ME.sum(-1)
  return pair_MEE.max(-1).sum(-1) / np.where(total_M > 0, total_M, np.nan)
