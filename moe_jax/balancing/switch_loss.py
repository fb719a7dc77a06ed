"""The load-balancing loss of Switch Transformer: E * sum_i f_i P_i.

Fedus et al. 2021, arXiv:2101.03961, section 2.2, equations 4 to 6 (weight
0.01); the same form in GShard (Lepikhin et al. 2020, arXiv:2006.16668) and
ST-MoE (Zoph et al. 2022, arXiv:2202.08906, equations 7 to 9).

f_i is the share of assignments to expert i before drops, P_i the mean router
probability. 1 for balanced routing, which is no lower bound: f and P may
anti-correlate. f carries no gradient.
"""

import dataclasses

import jax.numpy as jnp

from moe_jax import registry
from moe_jax.balancing import base

COUNTS = ('first', 'all')


@registry.register
@dataclasses.dataclass(frozen=True)
class SwitchLoss(base.Balance):
  """The papers' auxiliary loss.

  Attributes:
    weight: the papers' alpha.
    scope: segments of the sums; the papers' is the group.
    count: f counts the 'first' choice of each token (the papers) or 'all' its
      choices, divided by K (T5X and Hugging Face do not divide: theirs is K
      times this).
  """

  weight: float = 0.01
  scope: str = 'group'
  count: str = 'first'

  def __post_init__(self):
    base.check_scope(self)
    if self.count not in COUNTS:
      raise ValueError(
        f'switch_loss: count={self.count!r}; valid: {", ".join(COUNTS)}'
      )

  def stats(self, sums):
    if sums.routing.probs_TE is None:
      raise ValueError('switch_loss needs a router with [T, E] probabilities')
    return {
      'load': sums.load(first_choice=self.count == 'first').astype(jnp.float32),
      'prob': sums.tokens(sums.routing.probs_TE),
      'tokens': sums.count(),
    }

  def loss(self, stats):
    load_SE = stats['load']
    f_SE = load_SE / jnp.maximum(load_SE.sum(-1, keepdims=True), 1)
    P_SE = stats['prob'] / jnp.maximum(stats['tokens'][:, None], 1)
    return f_SE.shape[-1] * (f_SE * P_SE).sum(-1)
