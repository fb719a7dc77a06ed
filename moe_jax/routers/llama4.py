"""Llama 4 routing: a sigmoid of the best logit scales the expert's INPUT.

Meta, Llama 4 (2025): no paper; after the released model code. One expert a
token by its logit, y = shared(x) + E(sigmoid(l) x), the shared expert being
the layer's `dense_branch='shared'`. With a gated expert the side matters: for
small ones the output is about quadratic in the weight. The released code has no
balancing loss; `probs_TE`, for those who want one, are the sigmoids divided by
their sum. Causal at any capacity for k=1.
"""

import dataclasses

import jax

from moe_jax import registry
from moe_jax.routers import base


@registry.register
@dataclasses.dataclass(frozen=True)
class Llama4(base.Choosing, base.Matrix):
  """k experts a token; init_std: as in `base.init_linear`."""

  k: int = 1

  def __call__(self, params, x_TD, ctx):
    logits_TE = base.linear_logits(params, x_TD)
    chosen = base.choose(logits_TE, ctx, self.k)
    return chosen.routing(
      chosen.of(jax.nn.sigmoid(logits_TE)),
      **base.affinities(logits_TE, jax.nn.log_sigmoid(logits_TE)),
      weight_on='input',
    )
