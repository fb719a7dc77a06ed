"""Drops at other capacities, from the choices alone, seated on the host.

Which choices find a seat at a capacity factor if `seating` orders them (Fedus
et al., "Switch Transformers", 2021, arXiv:2101.03961, section 2.2; OpenMoE's
drop towards the end, arXiv:2402.01739, section 4). Tokens in the record's order
make groups of the schema's size, as a text without padding does; each choice
that the router used wants a seat, K of a token by their rank. Dropped are those
whose place in their expert's queue is not below its rows. For independent draws
by loads p_e, one choice and seats by order, that is the t-th token of a group
with probability sum_e p_e P(Binomial(t - 1, p_e) >= C). Null: tokens in another
order, in blocks of 65,536: the same loads without neighbours that want the same
expert. Not for first-fit routers, whose choices wait in no queue.
"""

import dataclasses

import numpy as np

from moe_jax import registry
from moe_jax.analysis import queues
from moe_jax.analysis.metrics import base
from moe_jax.seating import capacity, orders

BLOCK = 1 << 16


@registry.register
@dataclasses.dataclass(frozen=True)
class DropsAt(base.Metric):
  """factors, seating, rule: as of an MoE layer. bins: of a group's places."""

  factors: tuple = (1.0, 1.25, 1.5, 2.0)
  seating: str = 'rank_major()'
  rule: str = 'per_choice()'
  bins: int = 8
  draws: int = 200
  seed: int = 0

  def start(self, schema):
    T = max(1, min(schema.group_size or 1024, schema.tokens))
    M, F, D = len(schema.layers), len(self.factors), len(schema.documents)
    of, K = capacity.build(self.rule), schema.choices
    rows = lambda f, E, Z: np.repeat(capacity.rows(of, f, T, K, E, Z), (E, Z))
    kinds = [(E - Z, Z) for E, Z in zip(schema.experts, schema.local)]
    return {
      'groups': (max(1, -(-min(schema.tokens, BLOCK) // T)), T),
      'rows': [np.stack([rows(f, *k) for f in self.factors]) for k in kinds],
      'order': orders.build(self.seating),
      'waiting': [],
      'rng': np.random.default_rng(self.seed),
      # Of the record and of the null: dropped at each factor, last all.
      'place': np.zeros((2, M, F + 1, self.bins), np.int64),
      'document': np.zeros((2, M, F + 1, D), np.int64),
    }

  def add(self, state, part):
    state['waiting'].append((part.expert, part.weight, part.document))
    block = np.prod(state['groups'])
    while sum(len(w[0]) for w in state['waiting']) >= block:
      joined = [np.concatenate(v) for v in zip(*state['waiting'], strict=True)]
      state['waiting'] = [[v[block:] for v in joined]]
      self._seat(state, [v[:block] for v in joined])
    return state

  def result(self, state, schema):
    """[M, F]; 'by_place' [M, F, bins], 'by_domain' [M, F, domains]."""
    if state['waiting'] and len(state['waiting'][0][0]):
      parts = zip(*state['waiting'], strict=True)
      self._seat(state, [np.concatenate(v) for v in parts])
    D, domain_D = len(schema.documents), [d for d, _ in schema.documents]
    is_DD = np.equal.outer(domain_D, np.arange(len(schema.domains)))
    found = {'factors': self.factors}
    for of, name in enumerate(('value', 'null')):
      place, document = state['place'][of], state['document'][of]
      found[name] = _share(place.sum(-1))
      found[f'by_place_{name}'] = _share(place)
      found[f'by_domain_{name}'] = _share(document @ is_DD)
    drawn = base.resample(D, self.draws, self.seed, domain_D)
    return found | base.interval(
      [_share(state['document'][0] @ times_D) for times_D in drawn]
    )

  def _seat(self, state, tokens):
    """Counts a block; what lacks of the last group is padding."""
    n, groups = len(tokens[0]), state['groups']
    bin_n = np.arange(n) % groups[1] * self.bins // groups[1]
    for of, order_n in enumerate((np.arange(n), state['rng'].permutation(n))):
      expert, weight, document_n = (v[order_n] for v in tokens)
      for m, rows in enumerate(state['rows']):
        chosen = expert[:, m], weight[:, m]
        lost_nF = queues.lost(state['order'], *chosen, rows, groups)
        np.add.at(state['place'][of, m].T, bin_n, lost_nF)
        np.add.at(state['document'][of, m].T, document_n, lost_nF)


def _share(count):
  """[M, F, ...] of [M, F + 1, ...], the last of which are all."""
  all_ = count[:, -1:]
  return count[:, :-1] / np.where(all_ > 0, all_, np.nan)
