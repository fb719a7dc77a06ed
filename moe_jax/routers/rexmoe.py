"""ReXMoE: top-k over the experts of neighbouring layers, let in step by step.

Zheyue Tan et al., "ReXMoE: Reusing Experts with Minimal Overhead in
Mixture-of-Experts", 2025, arXiv:2510.17483: `layers` adjacent layers have one
pool of E = layers * N experts, of which each chooses by its own router; raw
softmax over all E, top-k. Progressive scaling: up to step `start` N of them are
candidates, from step `end` all E, and floor((1 + (layers - 1) (t - start) /
(end - start)) N) between; which ones is drawn anew in every layer and step, for
all tokens alike, not a layer's own first. In evaluation all are.

The pool is the model's: `moe.share_experts` = layers, and `moe.num_experts` =
E. Without the progressive scaling the paper finds little gain from reuse.
Differs: whether the paper draws one mask for all layers is not said; the others
score -inf, not 0. In a decoder binding capacity leaks: see `top_k`.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.errors import UserError
from moe_jax.routers import base


@registry.register
@dataclasses.dataclass(frozen=True)
class Rexmoe(base.Choosing, base.Linear):
  """k experts a token; further options are those of `base.Linear`.

  Attributes:
    layers: r, that share the pool; 1 is top-k.
    start, end: steps between which candidates are let in (paper: 10,000 and
      30,000).
  """

  k: int = 2
  layers: int = 2
  start: int = 10_000
  end: int = 30_000

  def __post_init__(self):
    super().__post_init__()
    if not isinstance(self.layers, int) or self.layers < 1:
      raise UserError(
        f'rexmoe: layers={self.layers!r} must be a whole number from 1'
      )
    if not 0 <= self.start < self.end:
      raise UserError(
        f'rexmoe: start={self.start} must be from 0 to below end={self.end}'
      )

  def limit(self, E):
    if E % self.layers or E * (self.end - self.start) >= 2**31:
      raise UserError(
        f'rexmoe: layers={self.layers} must divide num_experts={E}, and that '
        f'times end - start be below 2^31'
      )
    return E // self.layers

  def candidates(self, step, E):
    """N_t, int32: whole numbers, so that the floor is exact."""
    N, length = E // self.layers, self.end - self.start
    past = jnp.clip(step - self.start, 0, length)
    return N + (E - N) * past // length

  def __call__(self, params, x_TD, ctx):
    found, E = self.affinities(params, x_TD, ctx), ctx.num_experts
    open_E = jnp.ones(E, bool)
    if ctx.train:
      step = base.known(ctx, 'step', 'rexmoe')
      key = base.known(ctx, 'layer_key', 'rexmoe')
      place_E = jax.random.permutation(key, E)
      open_E = place_E < self.candidates(step, E)
    among = lambda scores_TE: jnp.where(open_E, scores_TE, -jnp.inf)
    chosen = self.choose(found, ctx, self.k, then=among)
    return chosen.routing(chosen.of(found['probs_TE']), **found)
