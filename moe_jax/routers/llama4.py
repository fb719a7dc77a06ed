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
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.routers import base


@registry.register
@dataclasses.dataclass(frozen=True)
class Llama4(base.Router):
  """k experts a token; init_std: as in `base.init_linear`."""

  k: int = 1
  init_std: float | None = None
  has_matrix = True

  def __post_init__(self):
    base.check_k('llama4', self.k)

  def check(self, E):
    base.check_k('llama4', self.k, E)

  def init(self, key, E, D):
    return base.init_linear(key, E, D, self.init_std)

  def __call__(self, params, x_TD, ctx):
    logits_TE = base.linear_logits(params, x_TD)
    gates_TE = jax.nn.sigmoid(logits_TE)
    scores_TE, solved_E = base.biased(logits_TE, self.k, ctx)
    _, expert_TK = jax.lax.top_k(scores_TE, self.k)
    return base.from_choices(
      expert_TK,
      jnp.take_along_axis(gates_TE, expert_TK, -1),
      ctx,
      logits_TE.shape[-1],
      logits_TE=logits_TE,
      **base.normalized(jax.nn.log_sigmoid(logits_TE)),
      solved_E=solved_E,
      weight_on='input',
    )

  def experts_per_token(self, E):
    return float(self.k)
