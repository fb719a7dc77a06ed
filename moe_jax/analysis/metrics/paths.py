"""Paths over layers: which sequences of experts tokens take.

A token's path is its first choices, one of each layer (nobody is one, too). By
counts c of N tokens, 'distinct' paths, and 'entropy' = -sum c/N ln c/N in nats,
which is below ln N whatever the router: both depend on N and only compare with
their null, layers that choose apart at the same loads: the first layer's choice
for a token, the second's for the one `lag` tokens before it, the third's for
that of 2 lag, and so on. Undefined for one layer. The measure is ours.

Memory is bounded: paths are counted exactly up to `most` of them. From there on
those are kept whose hash falls into a share 2^-s of all, halved whenever there
are too many (Flajolet, "On Adaptive Sampling", Computing 1990), and sums over
them are multiplied by 2^s: unbiased, and the worse the more a few paths hold.
"""

import dataclasses

import numpy as np

from moe_jax import registry
from moe_jax.analysis.metrics import base


@registry.register
@dataclasses.dataclass(frozen=True)
class Paths(base.Metric):
  """most: paths that are counted at once. lag: tokens; fewer in short texts."""

  most: int = 1 << 19
  lag: int = 997

  def start(self, schema):
    M = len(schema.layers)
    # At most a tenth of the tokens has no counterpart in the null.
    lag = min(self.lag, schema.tokens // (10 * M))
    before = np.zeros((0, M), np.int64)
    return {'lag': lag, 'before': before, 'own': _none(), 'null': _none()}

  def add(self, state, part):
    M = part.expert.shape[1]
    S = state['lag'] * (M - 1)
    first_nM = np.concatenate([state['before'], part.expert[:, :, 0]])
    n = max(len(first_nM) - S, 0)
    state['before'] = first_nM[n:]
    at = lambda m: S - m * state['lag']
    lagged_nM = np.stack([first_nM[at(m) :, m][:n] for m in range(M)], -1)
    state['own'] = _counted(state['own'], first_nM[S:], self.most)
    state['null'] = _counted(state['null'], lagged_nM, self.most)
    return state

  def result(self, state, schema):
    """Numbers of the whole model; 'tokens' N, 'sampled' 2^-s of 'value'."""
    if len(schema.layers) < 2 or not state['lag']:
      return {'undefined': 'one layer, or too few tokens'}
    own, null = _numbers(state['own']), _numbers(state['null'])
    return {f'{k}_value': own[k] for k in ('distinct', 'entropy')} | {
      **{f'{k}_null': null[k] for k in ('distinct', 'entropy')},
      'tokens': state['own'][2],
      'sampled': 0.5 ** state['own'][3],
      'null_sampled': 0.5 ** state['null'][3],
    }


def _none():
  """(hashes, their counts, tokens, s) of no path."""
  return np.zeros(0, np.uint64), np.zeros(0, np.int64), 0, 0


def _counted(table, path_nM, most):
  """The table with these paths."""
  key_R, count_R, tokens, s = table
  key_n = np.zeros(len(path_nM), np.uint64)
  for m in range(path_nM.shape[1]):
    key_n = _mixed(key_n * np.uint64(31) + path_nM[:, m].astype(np.uint64))
  key_n, count_n = np.unique(key_n, return_counts=True)
  key = np.concatenate([key_R, key_n])
  key, place = np.unique(key, return_inverse=True)
  count = np.bincount(place, np.concatenate([count_R, count_n]), len(key))
  while True:
    kept = key & np.uint64((1 << s) - 1) == 0
    key, count = key[kept], count[kept]
    if len(key) <= most:
      return key, count, tokens + len(path_nM), s
    s += 1


def _mixed(v):
  """A hash of 64 bits (Stafford's mix 13, as in SplitMix64)."""
  for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
    v = (v ^ (v >> np.uint64(shift))) * np.uint64(factor)
  return v ^ (v >> np.uint64(31))


def _numbers(table):
  _, count, tokens, s = table
  share = count / max(tokens, 1)
  return {
    'distinct': len(count) * 2.0**s,
    'entropy': -(share * np.log(share)).sum() * 2.0**s,
  }
