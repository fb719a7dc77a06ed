"""Top-1 loss of Sigma-MoE-Tiny: a load with a gradient, for one expert a token.

Qingguo Hu et al., "Sigma-MoE-Tiny Technical Report", 2025, arXiv:2512.16248,
the Top-1 loss (temperature 0.1; the weight here is Switch's).

In E sum f P the load f has no gradient: with many experts and one choice P
becomes uniform while f stays skewed, at the loss's lowest value. Here both
factors are the mean of q = softmax(logits / temperature), nearly one-hot:
E sum_i mean(q_i)^2 over the mean of a token's largest q. 1 for balanced
routing, if every token is sure; never below. Meant for K = 1.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.balancing import base
from moe_jax.errors import UserError


@registry.register
@dataclasses.dataclass(frozen=True)
class Top1Loss(base.Balance):
  """temperature: of q. weight: of the loss. scope: segments of the sums."""

  temperature: float = 0.1
  weight: float = 0.01
  scope: str = 'global'

  def check(self):
    if not self.temperature > 0:
      raise UserError(
        f'top1_loss: temperature={self.temperature} must be positive'
      )

  def stats(self, sums):
    logits_GTE = sums.routing.logits_TE
    if logits_GTE is None:
      raise UserError('top1_loss needs a router with [T, E] logits')
    q = jax.nn.softmax(logits_GTE / self.temperature)
    return {
      'load': sums.tokens(q),
      'sure': sums.tokens(q.max(-1)),
      'tokens': sums.count(),
    }

  def loss(self, stats, state, router):
    tokens_S = jnp.maximum(stats['tokens'], 1)
    f_SE = stats['load'] / tokens_S[:, None]
    sure_S = jnp.where(stats['tokens'] > 0, stats['sure'] / tokens_S, 1)
    return f_SE.shape[-1] * (f_SE**2).sum(-1) / sure_S
