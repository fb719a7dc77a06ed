"""Repetition: how often a token goes where the one before it went.

Albert Q. Jiang et al., "Mixtral of Experts", 2024, arXiv:2401.04088, section 5,
table 5: the share of consecutive tokens of a document with the same expert

  first    as the first choice of both;
  any      among the first or second of both: the pairs of choices meet.

The null draws every token's choices by itself at the measured loads: sum_i
p_i^2 for the first (1 / E where loads are even, the paper's chance), and for
pairs the chance that two of them meet, from how often each pair is chosen: 0.46
for two of eight at even loads. `first_domain_null` draws at the loads of the
token's own domain: what of the repetition a domain's subject makes. Repeated
ids repeat their experts, too; that is not taken off. Intervals are over
documents. Undefined where no token has one before it; for K = 1 `any` is
`first`.
"""

import dataclasses

import numpy as np

from moe_jax import registry
from moe_jax.analysis import counts, nulls
from moe_jax.analysis.metrics import base


@registry.register
@dataclasses.dataclass(frozen=True)
class Repetition(base.Metric):
  """Results, of first and any: value with its interval, null, excess.

  And `first_by_domain` and `any_by_domain`, [M][domains].

  Attributes:
    draws: bootstraps of documents.
    seed: of them.
  """

  draws: int = 200
  seed: int = 0

  def start(self, schema):
    M, E = len(schema.layers), base.width(schema)
    return {
      'sum': np.zeros((len(schema.documents), M, 3), np.int64),
      'first': np.zeros((len(schema.domains), M, E), np.int64),
      'pair': np.zeros((M, E, E), np.int64),
      'last': None,
    }

  def add(self, state, part):
    two_nMK = part.expert[..., :2]
    before_nMK, follows_n = base.before(state['last'], part, 'expert')
    state['last'] = base.ending(part)
    before_nMK = before_nMK[..., :2]
    used_nM = two_nMK[..., 0] >= 0
    both_nM = used_nM & (before_nMK[..., 0] >= 0) & follows_n[:, None]
    same = two_nMK[..., :, None] == before_nMK[..., None, :]
    same &= (two_nMK >= 0)[..., None] & both_nM[..., None, None]
    sums = both_nM, same[..., 0, 0], same.any((-1, -2))
    np.add.at(state['sum'], part.document, np.stack(sums, -1))
    base.tally(state['first'], part.domain, two_nMK[..., :1])
    # Without a second choice, a token is its first twice.
    second_nM = two_nMK[..., -1]
    second_nM = np.where(second_nM >= 0, second_nM, two_nMK[..., 0])
    layer_nM = np.broadcast_to(np.arange(used_nM.shape[1]), used_nM.shape)
    cell = layer_nM, two_nMK[..., 0], second_nM
    np.add.at(state['pair'], tuple(c[used_nM] for c in cell), 1)
    return state

  def result(self, state, schema):
    sum_DM3 = state['sum']
    value_M2 = counts.rates(sum_DM3.sum(0))
    again_WM2 = counts.rates(counts.resampled(sum_DM3, self.draws, self.seed))
    domain_D = np.array([d for d, _ in schema.documents])
    own_GD = domain_D == np.arange(len(schema.domains))[:, None]
    domain_GM3 = counts.grouped(sum_DM3, own_GD[None])[0]
    chance = _meeting(state['first'].sum(0), state['pair'])
    square_GM = (counts.shares(state['first']) ** 2).sum(-1)
    weight_GM = domain_GM3[..., 0] / np.maximum(domain_GM3[..., 0].sum(0), 1)
    out = {'first_domain_null': (square_GM * weight_GM).sum(0)}
    for i, k in enumerate(('first', 'any')):
      out |= {f'{k}_value': value_M2[:, i], f'{k}_null': chance[i]}
      out[f'{k}_excess'] = nulls.excess(value_M2[:, i], chance[i])
      out |= base.interval(again_WM2[..., i], f'{k}_')
      out[f'{k}_by_domain'] = counts.rates(domain_GM3)[..., i].T
    return out


def _meeting(first_ME, pair_MEE):
  """[M] each: the chance that two tokens' firsts are one, that pairs meet."""
  tokens_M = np.maximum(first_ME.sum(-1), 1)[:, None, None]
  pair_MEE = (pair_MEE + pair_MEE.swapaxes(1, 2)) / tokens_M
  alone_ME = np.diagonal(pair_MEE, axis1=1, axis2=2) / 2
  in_ME = pair_MEE.sum(-1) - alone_ME
  # Two experts are shared by those of the same pair, who were counted twice.
  twice_M = (pair_MEE**2).sum((1, 2)) / 2 - 2 * (alone_ME**2).sum(-1)
  return (counts.shares(first_ME) ** 2).sum(-1), (in_ME**2).sum(-1) - twice_M
