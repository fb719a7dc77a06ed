"""Margins: how far the last expert chosen is from the first one that is not.

The k-th affinity less the (k + 1)-th, of each token, as records have them: what
rounding, noise or another device must move for another expert to be chosen. No
paper's: DeepSeek-V3 and others route in float32 for its sake, and records that
are replayed (Wenhan Ma et al., "Stabilizing MoE Reinforcement Learning by
Aligning Training and Inference Routers", 2025, arXiv:2510.11370) exist because
it is small for some tokens.

`below` are the shares of tokens whose margin is under each threshold. bfloat16
keeps 8 bits: affinities between 2^-j and twice that stand 2^-(j + 7) apart, so
that of those near 1 / E, 64 experts, any two closer than 2^-13 may be one
number. `bf16_value` is the share under this spacing at 1 / E: what rounding the
affinities alone can flip. Logits that were computed in bfloat16 flip more, for
large affinities the spacing is wider; sigmoid affinities near 1 / 2 have 2^-8,
a threshold of `below`.

One variable a token. Nothing is estimated from rare counts, so that there is no
null but an untrained twin's record; intervals are over documents. Undefined for
routers that do not rank affinities (`top_score` of the schema).
"""

import dataclasses

import numpy as np

from moe_jax import registry
from moe_jax.analysis import counts
from moe_jax.analysis.metrics import base

_OCTAVES = 32  # of the histogram: 2^-32 to 1


@registry.register
@dataclasses.dataclass(frozen=True)
class Margins(base.Metric):
  """Results: bf16 and its interval, below, median, and a histogram.

  `median` is the upper end of the octave that holds it;
  `histogram` [M][34] are shares of tokens: under `edges`[0], between two of
  `edges`, which are powers of 2, and from the last, 1, on.

  Attributes:
    thresholds: of `below`.
    draws: bootstraps of documents.
    seed: of them.
  """

  thresholds: tuple = (2**-16, 2**-13, 2**-10, 2**-8)
  draws: int = 200
  seed: int = 0

  def start(self, schema):
    D, M, T = len(schema.documents), len(schema.layers), len(self.thresholds)
    spacing_M = 2.0 ** (-np.ceil(np.log2(schema.experts)) - 7)
    return {
      'sum': np.zeros((D, M, T + 2), np.int64),
      'octave': np.zeros((M, _OCTAVES + 2), np.int64),
      'spacing': spacing_M,
    }

  def add(self, state, part):
    margin_nM = part.margin
    known_nM = ~np.isnan(margin_nM)
    under = [margin_nM < t for t in self.thresholds]
    sums = known_nM, margin_nM < state['spacing'], *under
    np.add.at(state['sum'], part.document, np.stack(sums, -1))
    bin_nM = np.digitize(margin_nM, self._edges)
    for m, octave in enumerate(state['octave']):
      octave += np.bincount(bin_nM[known_nM[:, m], m], minlength=len(octave))
    return state

  def result(self, state, schema):
    sum_DMX = state['sum']
    if not sum_DMX[..., 0].any():
      return {'undefined': 'the record has no margins of this router'}
    again_WMX = counts.rates(counts.resampled(sum_DMX, self.draws, self.seed))
    value_MX = counts.rates(sum_DMX.sum(0))
    share_MO = counts.shares(state['octave'])
    half_M = (share_MO.cumsum(-1) >= 0.5).argmax(-1)
    return {
      'bf16_value': value_MX[:, 0],
      **base.interval(again_WMX[..., 0], 'bf16_'),
      'spacing': state['spacing'],
      'thresholds': self.thresholds,
      'below': value_MX[:, 1:],
      'median': 2.0 ** (half_M - _OCTAVES),
      'edges': self._edges,
      'histogram': share_MO,
    }

  @property
  def _edges(self):
    return 2.0 ** np.arange(-_OCTAVES, 1)
