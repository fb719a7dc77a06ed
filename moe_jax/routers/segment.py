"""Segment routing: neighbouring tokens choose their experts together.

Evandro S. Ortigossa and Eran Segal, "Seg-MoE: Multi-Resolution Segment-wise
Mixture-of-Experts for Time Series Forecasting Transformers", 2026,
arXiv:2601.21641, section 3, for time series: the router reads `size` tokens
laid end to end, softmax, top-k, weights renormalised where k > 1. Every token
of a segment goes to the segment's experts by itself, as in the published code's
present default; the paper's own form, experts on the whole segment, is a layer
over wider tokens.

With size=1 it is top-k. A token sees the rest of its segment: not causal. The
group must hold whole segments.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.errors import UserError
from moe_jax.routers import base


@registry.register
@dataclasses.dataclass(frozen=True)
class Segment(base.Choosing):
  """size: tokens of a segment (paper: 3 to 5). k: experts of it (1)."""

  size: int = 4
  k: int = 1
  causal, has_matrix = False, True

  def __post_init__(self):
    super().__post_init__()
    if not isinstance(self.size, int) or self.size < 1:
      raise UserError(
        f'segment: size={self.size!r} must be a whole number from 1'
      )

  def init(self, key, E, D):
    return base.init_linear(key, E, self.size * D)

  def __call__(self, params, x_TD, ctx):
    T, s = x_TD.shape[0], self.size
    if T % s:
      raise UserError(
        f'segment: groups of {T} tokens do not hold whole segments of {s}'
      )
    # Padding is zeros, as a short last segment's.
    x_TD = jnp.where(ctx.mask_T[:, None], x_TD, 0)
    logits_SE = base.linear_logits(params, x_TD.reshape(T // s, -1))
    logits_TE = jnp.repeat(logits_SE, s, axis=0)
    found = base.affinities(logits_TE)
    chosen = base.choose(found['probs_TE'], ctx, self.k)
    weight_TK = chosen.of(found['probs_TE'])
    if self.k > 1:
      weight_TK = jax.nn.softmax(chosen.of(logits_TE))
    return chosen.routing(weight_TK, **found)
