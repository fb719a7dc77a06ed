"""Context independence: what the id tells of the expert, and what context adds.

Fuzhao Xue et al., "OpenMoE: An Early Effort on Open Mixture-of-Experts Language
Models", 2024, arXiv:2402.01739, section 4, found the token's id to decide,
whatever stands before it. Here as cross-entropies of predictions made on one
half of the documents and looked at on the other, both ways: rare ids flatter.

  id_value      = (CE[P(e)] - CE[P(e | id)]) / H(e)
  context_value = (CE[P(e | id)] - CE[P(e | id, previous id)]) / H(e)

Routing that the id decides has id_value 1, one that it and the id before decide
has a sum of 1. K choices of a token are K draws: P is of edges.

Smoothing: P(e | id) has s further edges of P(e), P(e | id, previous) some of
P(e | id), P(e) half an edge an expert; s is the best for the half that is not
looked at. Memory is bounded: pairs go by a hash to one of `cells` / (M E) rows,
which the first has; for all others context counts as unknown, as for pairs not
seen. `known` is the share of edges of pairs that both halves have.

Nulls, one draw each: choices drawn by P(e) for id_value; for context_value by
P(e | id), a router that reads ids alone. Undefined where a half has no choice.
"""

import dataclasses

import numpy as np

from moe_jax import registry
from moe_jax.analysis import backoff, counts, nulls
from moe_jax.analysis.metrics import base
from moe_jax.errors import UserError


@registry.register
@dataclasses.dataclass(frozen=True)
class ContextIndependence(base.Metric):
  """Results: id and context: value, null, halves, excess; H(e), known.

  Attributes:
    cells: of the pairs' table, of each half; 4 bytes each.
    seed: of the nulls.
  """

  cells: int = 1 << 24
  seed: int = 0

  def start(self, schema):
    M, E = len(schema.layers), base.width(schema)
    rows = self.cells // (M * E)
    if not rows:
      raise UserError(f'cells={self.cells}; {M * E} or more are wanted here')
    return {
      'schema': schema,
      'last': None,
      'owner': np.full(rows, -1, np.int64),
      'id': np.zeros((2, schema.vocab, M, E), np.int32),
      'pair': np.zeros((2, rows, M, E), np.int32),
    }

  def add(self, state, part):
    V = state['schema'].vocab
    previous_n, follows_n = base.before(state['last'], part, 'token')
    state['last'] = base.ending(part)
    pair_n = part.token * np.int64(V + 1) + np.where(follows_n, previous_n, V)
    row_n = backoff.claim(state['owner'], pair_n)
    half_n = base.halves(state['schema'], part)
    for h in (0, 1):
      for k, of_n in (('id', part.token), ('pair', row_n)):
        own_n = np.where(half_n == h, of_n, -1)
        base.tally(state[k][h], own_n, part.expert)
    return state

  def result(self, state, schema):
    if not state['id'].any((1, 3)).all():
      return {'undefined': 'one half of the text has no choice'}
    occurs, used = (state[k].any((0, 2, 3)) for k in ('id', 'pair'))
    rng, found, ids = base.generator(self.seed), [], np.flatnonzero(occurs)
    id_R = np.searchsorted(ids, state['owner'][used] // (schema.vocab + 1))
    for m, E in enumerate(schema.experts):
      tables = state['id'][:, ids, m, :E], state['pair'][:, used, m, :E]
      found.append(_explained(backoff.Tables(*tables, id_R), rng))
    out = {k: np.stack([f[k] for f in found]) for k in found[0]}
    for k in ('id', 'context'):
      out[f'{k}_value'] = out[f'{k}_halves'].mean(-1)
      out[f'{k}_excess'] = nulls.excess(out[f'{k}_value'], out[f'{k}_null'])
    return out


def _explained(tables, rng):  # one layer
  entropy = counts.entropy(tables.id.sum((0, 1)))
  by_id, by_pair, strength = tables.gains()
  share = lambda nats: nats / entropy if entropy else np.nan * nats
  return {
    'id_halves': share(by_id),
    'context_halves': share(by_pair),
    'id_null': share(tables.by_load(rng).gains()[0]).mean(),
    'context_null': share(tables.by_id(strength, rng).gains()[1]).mean(),
    'entropy': entropy,
    'known': tables.known(),
  }
