"""Experts that are dead, starved or always on: the load, in words' terms.

Collapse of a router is the first thing to look for (Shazeer et al., "Outrage-
ously Large Neural Networks", 2017, arXiv:1701.06538, section 4). Of N choices,
K of a token alike, before drops, and of the tokens,

  dead       experts that no token chose
  starved    chosen less than `least` times as often as by even loads, but some
  always_on  chosen by at least `most` of all tokens, where K / E are expected

The thresholds are ours. 'max_load' is the largest load over the mean. Each has
as null what even loads give by chance: N draws among E. Experts that compute
the same are seen by their outputs: `analysis.outputs`. Numbers of zero-
computation experts count as any.
"""

import dataclasses

import numpy as np

from moe_jax import registry
from moe_jax.analysis.metrics import base


@registry.register
@dataclasses.dataclass(frozen=True)
class Collapse(base.Metric):
  """least, most: as above."""

  least: float = 0.1
  most: float = 0.9
  draws: int = 50
  seed: int = 0

  def start(self, schema):
    M, E = len(schema.layers), base.width(schema)
    return np.zeros((1, M, E), np.int64)

  def add(self, state, part):
    return base.tally(state, np.zeros(len(part), np.int64), part.expert)

  def result(self, state, schema):
    """By layer; 'load' [M, E], and of each kind its experts, [M][...]."""
    load_ME, even_ME = state[0], base.even(schema)
    rng, total_M = np.random.default_rng(self.seed), load_ME.sum(-1)
    own = self._kinds(load_ME, even_ME, schema.tokens)
    null = [
      self._kinds(rng.multinomial(total_M, even_ME), even_ME, schema.tokens)
      for _ in range(self.draws)
    ]
    names = 'dead', 'starved', 'always_on'
    found = {'load': load_ME, 'max_load_value': own[-1]}
    found['max_load_null'] = np.mean([v[-1] for v in null], 0)
    for i, name in enumerate(names):
      found[f'{name}_value'] = own[i].sum(-1)
      found[f'{name}_null'] = np.mean([v[i].sum(-1) for v in null], 0)
      found[f'{name}_experts'] = [*map(np.flatnonzero, own[i])]
    return found

  def _kinds(self, load_ME, even_ME, tokens):
    """bool [M, E] each; and the largest load over the mean, [M]."""
    mean_ME = even_ME * load_ME.sum(-1, keepdims=True)
    there = even_ME > 0
    dead = there & (load_ME == 0)
    starved = there & (load_ME > 0) & (load_ME < self.least * mean_ME)
    always = there & (load_ME >= self.most * max(tokens, 1))
    over = load_ME / np.where(mean_ME > 0, mean_ME, np.inf)
    return dead, starved, always, over.max(-1)
