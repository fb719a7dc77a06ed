"""Replication: whether another run has the same experts, under other numbers.

A metric of pairs: two runs, as of two seeds, on the same tokens. Experts'
numbers are arbitrary, so experts are matched first, one to one, to have the
most tokens in common (Harold W. Kuhn, "The Hungarian Method for the Assignment
Problem", 1955), on one half of the documents; what is looked at is the other:

  matched = sum_i N_{i, match(i)} / sum_i N_i

with N_ij the tokens that choose i here and j there, any of their choices. Its
null: tokens that choose apart at both runs' loads, under that match. Of first
choices alone, the adjusted mutual information (Nguyen Xuan Vinh et al.,
"Information Theoretic Measures for Clusterings Comparison", JMLR 2010):

  ami = (I - E[I]) / (mean of both entropies - E[I])

1 for the same partition of tokens, 0 by chance: E[I] is a mean over random
tables with the same margins. Any two routers that read ids agree in some:
untrained twins are the control. Refused where numbers of layers differ.
"""

import dataclasses

import numpy as np
from scipy import optimize

from moe_jax import registry
from moe_jax.analysis import counts, nulls
from moe_jax.analysis.metrics import base
from moe_jax.errors import UserError


@registry.register
@dataclasses.dataclass(frozen=True)
class Replication(base.Metric):
  """Results: matched (value, of both halves, null, excess), ami, match.

  `match` [M][E] is made on all the text, -1 where the other has no expert left.

  Attributes:
    draws: of random tables, at least two.
    seed: of them.
  """

  draws: int = 20
  seed: int = 0
  pair = True

  def start(self, schema, other):
    M, theirs = len(schema.layers), len(other.layers)
    if M != theirs:
      raise UserError(f'replication: {M} MoE layers against {theirs}')
    shape = M, base.width(schema), base.width(other)
    return {
      'schema': schema,
      'first': np.zeros(shape, np.int64),
      'all': np.zeros((2, *shape), np.int64),
      'load': [np.zeros((2, M, e), np.int64) for e in shape[1:]],
      'tokens': np.zeros(2, np.int64),
    }

  def add(self, state, part, other):
    a_nMK, b_nMK = part.expert, other.expert
    half_n = base.halves(state['schema'], part)
    state['tokens'] += np.bincount(half_n, minlength=2)
    for load, e_nMK in zip(state['load'], (a_nMK, b_nMK), strict=True):
      base.tally(load, half_n, e_nMK)
    for m in range(a_nMK.shape[1]):
      for k in range(a_nMK.shape[2]):
        for j in range(b_nMK.shape[2]):
          a_n, b_n = a_nMK[:, m, k], b_nMK[:, m, j]
          base.cross(state['all'][:, m], a_n, b_n, half_n)
      base.cross(state['first'][m], a_nMK[:, m, 0], b_nMK[:, m, 0])
    return state

  def result(self, state, schema, other):
    value, null = np.zeros((2, 2, len(schema.layers)))
    match = np.full((len(schema.layers), base.width(schema)), -1)
    own, its = state['load']
    for m in range(len(match)):
      for half in (0, 1):
        i, j = _match(state['all'][1 - half, m])
        edges = max(own[half, m].sum(), 1)
        value[half, m] = state['all'][half, m][i, j].sum() / edges
        together = own[half, m, i] * its[half, m, j]
        null[half, m] = together.sum() / edges / max(state['tokens'][half], 1)
      i, j = _match(state['all'][:, m].sum(0))
      match[m, i] = j
    out = {'matched_value': value.mean(0), 'matched_null': null.mean(0)}
    most = np.minimum(1, its.sum((0, 2)) / np.maximum(own.sum((0, 2)), 1))
    out['matched_excess'] = nulls.excess(value.mean(0), null.mean(0), most)
    out |= {'matched_halves': value.T, 'match': match}
    how = self.draws, base.generator(self.seed)
    ami = [counts.adjusted_information(t, *how) for t in state['first']]
    ami = np.stack(ami, -1)
    return out | {'ami_value': ami[0]} | nulls.level(ami[1:], 'ami_')


def _match(table_EE):
  return optimize.linear_sum_assignment(table_EE, maximize=True)
