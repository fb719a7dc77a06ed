"""Switch routing: each token to its one most probable expert.

Fedus, Zoph, Shazeer, "Switch Transformers: Scaling to Trillion Parameter
Models with Simple and Efficient Sparsity", JMLR 2022, arXiv:2101.03961,
section 2.1, equations 1 and 2, and appendix C for the jitter.

The combine weight is the raw probability, not renormalised: with one choice
the renormalised weight is 1 and the router has no gradient. Differs from the
paper: jitter is off unless asked for (the released T5X configurations train
without it). Causal at any capacity.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.routers import base


@registry.register
@dataclasses.dataclass(frozen=True)
class Switch(base.Router):
  """jitter: half-width of the multiplicative input noise (paper: 0.01)."""

  jitter: float = 0.0

  def init(self, key, E, D):
    return base.init_linear(key, E, D)

  def __call__(self, params, x_TD, ctx):
    x_TD = base.jitter(x_TD, self.jitter, ctx)
    logits_TE = base.linear_logits(params, x_TD)
    probs_TE = jax.nn.softmax(logits_TE)
    expert_T1 = jnp.argmax(probs_TE + ctx.selection_bias_E, -1, keepdims=True)
    weight_T1 = jnp.take_along_axis(probs_TE, expert_T1, -1)
    return base.from_choices(
      expert_T1,
      weight_T1,
      ctx,
      probs_TE.shape[-1],
      logits_TE=logits_TE,
      probs_TE=probs_TE,
    )

  def experts_per_token(self, E):
    return 1.0
