"""AdaMoE's balancing loss: null experts share their load.

Zihao Zeng et al., "AdaMoE: Token-Adaptive Routing with Null Experts for
Mixture-of-Experts Language Models", 2024, arXiv:2406.13233, section 3.2: the
Switch loss over true and null experts, in which every null expert has the mean
load of all of them: which of them a token chose makes no difference. 1 for
balanced routing: the paper's coefficient (0.02, then 0.0001) counts k fold, as
its shares sum to k.
"""

import dataclasses

import jax.numpy as jnp

from moe_jax import registry
from moe_jax.balancing import base


@registry.register
@dataclasses.dataclass(frozen=True)
class NullLoss(base.Balance):
  """weight: of the loss. scope: segments of the sums."""

  weight: float = 0.02
  scope: str = 'group'

  def stats(self, sums):
    r = sums.routing
    Z, load_SE = r.num_local, sums.load(chosen=True).astype(jnp.float32)
    if Z:
      mean_S1 = load_SE[:, -Z:].mean(-1, keepdims=True)
      load_SE = load_SE.at[:, -Z:].set(mean_S1)
    tokens = sums.count()
    prob = sums.tokens(base.affinities(r, 'null_loss'))
    return {'load': load_SE, 'prob': prob, 'tokens': tokens}

  def loss(self, stats, state, router):
    load_SE = stats['load']
    f_SE = load_SE / jnp.maximum(load_SE.sum(-1, keepdims=True), 1)
    P_SE = stats['prob'] / jnp.maximum(stats['tokens'], 1)[:, None]
    return f_SE.shape[-1] * (f_SE * P_SE).sum(-1)
