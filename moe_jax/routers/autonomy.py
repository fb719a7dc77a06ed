"""Autonomy-of-Experts: no router; experts bid with their own activations.

Ang Lv et al., "Autonomy-of-Experts Models", 2025, arXiv:2501.13074, section 3,
algorithm 2: an expert's bid for a token is the length of its low-rank
projection of it, and the softmax over the k largest bids weighs the results.

Goes with the expert kind `autonomy`, whose projections every device holds for
all experts: T x E x d_low numbers. The loss sees the softmax over all bids
(`switch_loss(count='all')`). Differs from the published code, which takes the
softmax over all bids for weights too. Lengths have no scale of their own: an
expert may outbid others by growing.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.routers import base


@registry.register
@dataclasses.dataclass(frozen=True)
class Autonomy(base.Choosing):
  """k: experts of a token (paper: 2)."""

  k: int = 2
  reads_experts = True

  def init(self, key, E, D):
    return {}

  def __call__(self, params, x_TD, ctx):
    down_EDR = base.feature(ctx, 'down', 'autonomy')
    x_TD = x_TD.astype(jnp.float32)
    bid_TER = jnp.einsum(
      'td,edr->ter', x_TD, down_EDR, precision=jax.lax.Precision.HIGHEST
    )
    # The root has no gradient at 0.
    norm_TE = jnp.sqrt((bid_TER**2).sum(-1) + 1e-12)
    chosen = base.choose(norm_TE, ctx, self.k)
    weight_TK = jax.nn.softmax(chosen.of(norm_TE))
    return chosen.routing(weight_TK, **base.affinities(norm_TE))

  def experts_per_token(self, E):
    return float(self.k)
