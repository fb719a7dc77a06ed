"""Vocabulary specialisation: the share of an id's tokens its top expert sees.

Niklas Muennighoff et al., "OLMoE: Open Mixture-of-Experts Language Models",
2024, arXiv:2409.02060, section 5.4:

  specialisation(i, x) = N_{x, i} / N_x

for the input id, the true next id and the predicted one; the number is the mean
over ids of the largest share. N_x are occurrences of the id, as in the paper's
code; its text reads as all of their choices, which for K of them is K times
that. Any of a token's K choices counts: shares of an id sum to K.

What differs: ids with less than `min_count` occurrences are left out (the
paper's code takes an id seen once for a perfect specialist). Even so chance is
not K / E: for random routing of 600,000 tokens of a Zipf vocabulary of 4,096
over 64 experts the number is 0.08, not 0.016. `excess` is what is left beyond
the null, over what there could be. Undefined where no id is as frequent.
"""

import dataclasses

import numpy as np

from moe_jax import registry
from moe_jax.analysis.metrics import _ids


@registry.register
@dataclasses.dataclass(frozen=True)
class VocabularySpecialisation(_ids.IdMetric):
  """Results, of each of `ids`: value, null with its interval, excess.

  Attributes:
    min_count: occurrences of an id that is looked at; 1 is the paper's.
  """

  min_count: int = 8

  def statistic(self, count_VME, seen_V):
    often_V = seen_V >= self.min_count
    M = count_VME.shape[1]
    if not often_V.any():
      return np.full(M, np.nan), np.ones(M)
    top_VM = count_VME.max(-1)[often_V]
    return (top_VM / seen_V[often_V, None]).mean(0), np.ones(M)
