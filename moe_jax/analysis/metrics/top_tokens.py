"""The tokens of each expert, in words: by how many, and by how much more.

Muennighoff et al., "OLMoE", 2024, arXiv:2409.02060, section 5.4 and table 9;
Zoph et al., "ST-MoE", 2022, arXiv:2202.08906, tables 13 and 15; Xue et al.,
"OpenMoE", 2024, arXiv:2402.01739, section 4. Of expert e and id x,

  share = N_xe / N_x    lift = share / (N_e / N)

with N_xe occurrences of x that chose e among their K, N_x all its occurrences,
N_e tokens of e. By count an expert's table is of the frequent ids; by lift of
those that are its own, from `min_count` occurrences. The largest of many noisy
lifts is large: as null an occurrence chooses e with chance N_e / N. Published
tables have neither.
"""

import dataclasses

import numpy as np

from moe_jax import registry
from moe_jax.analysis import token_text
from moe_jax.analysis.metrics import base


@registry.register
@dataclasses.dataclass(frozen=True)
class TopTokens(base.Metric):
  """count: rows of a table. min_count: occurrences of an id that has a lift."""

  count: int = 10
  min_count: int = 10
  draws: int = 5
  seed: int = 0

  def start(self, schema):
    M, E = len(schema.layers), base.width(schema)
    return {
      'chosen_VME': np.zeros((schema.vocab, M, E), np.int32),
      'all_V': np.zeros(schema.vocab, np.int64),
    }

  def add(self, state, part):
    base.tally(state['chosen_VME'], part.token, part.expert)
    np.add.at(state['all_V'], part.token, 1)
    return state

  def result(self, state, schema):
    """'by_count', 'by_lift' [M][E] lists of {text, id, count, share, lift}.

    'value', 'null', 'null_high' [M, E]: the largest lift; by chance its mean
    and the largest of all draws.
    """
    seen = np.flatnonzero(state['all_V'])
    n_X, count_XME = state['all_V'][seen], state['chosen_VME'][seen]
    rate_ME = count_XME.sum(0) / max(n_X.sum(), 1)
    lift_XME, often_X = _lift(count_XME, n_X, rate_ME), n_X >= self.min_count
    own_XME = np.where(often_X[:, None, None], lift_XME, -1.0)
    texts = _texts(schema)

    def row(x, m, e):
      count, lift = int(count_XME[x, m, e]), float(lift_XME[x, m, e])
      numbers = {'count': count, 'share': count / int(n_X[x]), 'lift': lift}
      return {'text': texts[seen[x]], 'id': int(seen[x])} | numbers

    def tables(score_XME):
      best_XME = np.argsort(-score_XME, 0, kind='stable')[: self.count]
      real = lambda x, m, e: count_XME[x, m, e] > 0 and score_XME[x, m, e] > 0
      return [
        [
          [row(x, m, e) for x in best_XME[:, m, e] if real(x, m, e)]
          for e in range(E)
        ]
        for m, E in enumerate(schema.experts)
      ]

    found = {'by_count': tables(count_XME), 'by_lift': tables(own_XME)}
    if not often_X.any():
      return found
    rng, n_X = np.random.default_rng(self.seed), n_X[often_X]
    chance = n_X[:, None, None], np.minimum(rate_ME, 1)
    draw = lambda: _lift(rng.binomial(*chance), n_X, rate_ME).max(0)
    draws = [draw() for _ in range(self.draws)]
    high, null = np.max(draws, 0), np.mean(draws, 0)
    named = {'value': own_XME.max(0), 'null': null, 'null_high': high}
    used = lambda v: np.where(rate_ME > 0, v, np.nan)
    return found | {k: used(v) for k, v in named.items()}


def _lift(count_XME, n_X, rate_ME):
  expected_XME = n_X[:, None, None] * rate_ME
  return count_XME / np.where(expected_XME > 0, expected_XME, np.inf)


def _texts(schema):
  """Of each id, escaped; its number where the tokenizer is not known."""
  if not schema.tokenizer:
    return [str(i) for i in range(schema.vocab)]
  read = token_text.texts(schema.tokenizer, schema.vocab)
  return [token_text.shown(t) or f'<{i}>' for i, t in enumerate(read)]
