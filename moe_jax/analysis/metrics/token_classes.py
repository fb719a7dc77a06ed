"""Experts of kinds of tokens: sentinels, punctuation, numbers, white space, ...

Zoph et al., "ST-MoE", 2022, arXiv:2202.08906, section 7, tables 13 to 15: the
encoder's experts take kinds of tokens, the decoder's do not; each has a record
of its own. The kinds are `token_text`'s, not all of the paper's. Of class c,

  share_e = N_ce / N_c    lift_e = share_e / share_e of all tokens
  value = 1/2 sum_e |share_e - share_e of all tokens|

N counts choices, K of a token alike; table 14 is 'entropy', -sum share ln share
(the paper's decoder: that of even shares). An id tends to its experts whatever
it reads, so a class of few ids looks special: the null gives the classes to
other ids, of about the same frequency (by lot among `stratum` neighbours in its
order). A class is served by experts whose lift none reached in any of the
`draws`: by chance once in draws + 1, for one class and layer.
"""

import dataclasses

import numpy as np

from moe_jax import registry
from moe_jax.analysis import token_text
from moe_jax.analysis.metrics import base

C = len(token_text.CLASSES)


@registry.register
@dataclasses.dataclass(frozen=True)
class TokenClasses(base.Metric):
  """min_count: tokens of a class that has numbers."""

  min_count: int = 100
  stratum: int = 8
  draws: int = 99
  seed: int = 0

  def start(self, schema):
    if not schema.tokenizer:
      return None
    M, E, D = len(schema.layers), base.width(schema), len(schema.documents)
    return {
      'class_V': token_text.classes(schema.tokenizer, schema.vocab),
      'all_V': np.zeros(schema.vocab, np.int64),
      'id_VME': np.zeros((schema.vocab, M, E), np.int32),
      'document': np.zeros((D * C, M, E), np.int32),
    }

  def add(self, state, part):
    if state is not None:
      row_n = part.document * C + state['class_V'][part.token]
      np.add.at(state['all_V'], part.token, 1)
      base.tally(state['id_VME'], part.token, part.expert)
      base.tally(state['document'], row_n, part.expert)
    return state

  def result(self, state, schema):
    """[M, C] each; 'share', 'lift' [M, C, E]; 'served' bool [M, C, E]."""
    if state is None:
      return {'undefined': 'the record names no tokenizer'}
    D, domain_D = len(schema.documents), [d for d, _ in schema.documents]
    all_V, shape = state['all_V'], (C, *state['id_VME'].shape[1:])
    seen = np.argsort(-all_V, kind='stable')[: np.count_nonzero(all_V)]
    class_X, X = state['class_V'][seen], len(seen)
    id_XF = state['id_VME'][seen].reshape(X, -1).astype(np.float32)
    document_DF = state['document'].reshape(D, -1).astype(np.float32)
    numbers = lambda count: _numbers(count.reshape(shape))
    rng, null, top = np.random.default_rng(self.seed), [], []
    for _ in range(self.draws):
      # Sorted by stratum, by lot within it: an id takes another's class.
      other_X = np.lexsort((rng.random(X), np.arange(X) // self.stratum))
      is_CX = np.eye(C, dtype=np.float32)[:, class_X[other_X]]
      drawn = numbers(is_CX @ id_XF)
      null.append(drawn['value'])
      top.append(np.nan_to_num(drawn['lift']).max(-1))
    found = numbers(document_DF.sum(0))
    again = base.resample(D, self.draws, self.seed, domain_D)
    values = [numbers(times_D @ document_DF)['value'] for times_D in again]
    found |= base.interval(values)
    found |= {'null': np.mean(null, 0)} | base.interval(null, 'null_')
    tokens_C = np.bincount(class_X, all_V[seen], C)
    for v in found.values():
      v[:, tokens_C < self.min_count] = np.nan
    found['served'] = found['lift'] > np.max(top, 0)[..., None]
    return found | {'classes': token_text.CLASSES, 'tokens': tokens_C}


def _numbers(count_CME):
  """By layer and class, of counts."""
  over = lambda a, b: a / np.where(b > 0, b, np.nan)
  share = lambda v: over(v, v.sum(-1, keepdims=True))
  count_MCE = count_CME.transpose(1, 0, 2).astype(np.float64)
  share_MCE, all_M1E = share(count_MCE), share(count_MCE.sum(1, keepdims=True))
  return {
    'value': np.abs(share_MCE - all_M1E).sum(-1) / 2,
    'entropy': -(share_MCE * np.log(np.fmax(share_MCE, 1e-300))).sum(-1),
    'share': share_MCE,
    'lift': over(share_MCE, all_M1E),
  }
