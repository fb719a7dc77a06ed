"""Saturation: the share of a checkpoint's choices that the final one makes too.

Niklas Muennighoff et al., "OLMoE: Open Mixture-of-Experts Language Models",
2024, arXiv:2409.02060, section 5.1; the same number shows OpenMoE's early
routing learning (Fuzhao Xue et al., 2024, arXiv:2402.01739, section 4). A
metric of pairs: (checkpoint, final one) on the same tokens, routed without
noise. With the sets A_t and B_t of their choices of token t, and firsts a, b:

  top_1 = mean_t [a_t = b_t]       top_k = sum_t |A_t & B_t| / sum_t |A_t|
  jaccard = mean_t |A_t & B_t| / |A_t | B_t|

top_k is the paper's where every token has k choices; where the number varies,
one that chooses everything has most of it, and jaccard is what to read.

The null is chance: choices of two tokens drawn apart, at both checkpoints' own
loads (sum_i p_i q_i for top_1; from a sample for jaccard), which is above
k / E where loads are uneven. An untrained router sees what tokens are alike,
too: an untrained twin against the final checkpoint is a second pair. Experts'
numbers mean nothing across seeds: `replication`. Intervals are over documents.
"""

import dataclasses

import numpy as np

from moe_jax import registry
from moe_jax.analysis import counts, nulls
from moe_jax.analysis.metrics import base
from moe_jax.errors import UserError


@registry.register
@dataclasses.dataclass(frozen=True)
class Saturation(base.Metric):
  """Results, of top_1, top_k, jaccard: value and interval, null, excess.

  Attributes:
    draws: bootstraps of documents.
    sample: tokens that the chance of jaccard is taken from, at most.
    seed: of both.
  """

  draws: int = 200
  sample: int = 16_384
  seed: int = 0
  pair = True

  def start(self, schema, other):
    found = [(s.layers, s.experts) for s in (schema, other)]
    if found[0] != found[1]:
      raise UserError(f'saturation: layers and experts {found[0]}, {found[1]}')
    M, E = len(schema.layers), base.width(schema)
    return {
      'sum': np.zeros((len(schema.documents), M, 6)),
      'first': np.zeros((2, M, E), np.int64),
      'all': np.zeros((2, M, E), np.int64),
      'sample': nulls.Sample(self.sample, base.generator(self.seed)),
    }

  def add(self, state, part, other):
    a_nMK, b_nMK = part.expert, other.expert
    for i, e_nMK in enumerate((a_nMK, b_nMK)):
      row_n = np.full(len(part), i)
      base.tally(state['first'], row_n, e_nMK[..., :1])
      base.tally(state['all'], row_n, e_nMK)
    used_nM = a_nMK[..., 0] >= 0
    same_nM = used_nM & (a_nMK[..., 0] == b_nMK[..., 0])
    shared_nM, own_nM, union_nM, jaccard_nM = counts.overlap(a_nMK, b_nMK)
    pairs = used_nM, same_nM, own_nM, shared_nM, union_nM > 0, jaccard_nM
    np.add.at(state['sum'], part.document, np.stack(pairs, -1))
    state['sample'].add(np.concatenate([a_nMK, b_nMK], -1))
    return state

  def result(self, state, schema, other):
    value_M3, out = counts.ratios(state['sum'].sum(0)), {}
    again_WM3 = counts.ratios(
      counts.resampled(state['sum'], self.draws, self.seed)
    )
    for i, (k, null_M) in enumerate(self._nulls(state, schema).items()):
      out |= {f'{k}_value': value_M3[:, i], f'{k}_null': null_M}
      out[f'{k}_excess'] = nulls.excess(value_M3[:, i], null_M)
      out |= base.interval(again_WM3[..., i], f'{k}_')
    return out

  def _nulls(self, state, schema):
    a_ME, b_ME = counts.shares(state['first'])
    own_ME, its_ME = counts.shares(state['all'])
    its_M = state['all'][1].sum(-1) / max(schema.tokens, 1)
    both = state['sample'].value_R
    if both is None:
      both = np.zeros((0, len(schema.layers), schema.choices))
    a, b = np.split(both, [schema.choices], -1)
    # The sample is in random order: its neighbours are strangers.
    _, _, union_RM, jaccard_RM = counts.overlap(a, np.roll(b, 1, 0))
    some_M = np.maximum((union_RM > 0).sum(0), 1)
    return {
      'top_1': (a_ME * b_ME).sum(-1),
      'top_k': (own_ME * its_ME).sum(-1) * its_M,
      'jaccard': jaccard_RM.sum(0) / some_M,
    }
