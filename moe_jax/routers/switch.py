"""Switch routing: each token to its one most probable expert.

William Fedus et al., "Switch Transformers: Scaling to Trillion Parameter Models
with Simple and Efficient Sparsity", JMLR 2022, arXiv:2101.03961, section 2.1,
equations 1 and 2.

The combine weight is the raw probability, not renormalised: with one choice
the renormalised weight is 1 and the router has no gradient. Differs from the
paper: the jitter of its appendix C is off unless asked for (the released T5X
configurations train without it). Causal at any capacity.
"""

import dataclasses

import jax.numpy as jnp

from moe_jax import registry
from moe_jax.routers import base


@registry.register
@dataclasses.dataclass(frozen=True)
class Switch(base.Linear):
  """Options: those of `base.Linear`."""

  def __call__(self, params, x_TD, ctx):
    logits_TE, probs_TE, rest = self.affinities(params, x_TD, ctx)
    scores_TE, solved_E = self.scores(logits_TE, probs_TE, ctx, 1)
    expert_T1 = jnp.argmax(scores_TE, -1, keepdims=True)
    return base.from_choices(
      expert_T1,
      jnp.take_along_axis(probs_TE, expert_T1, -1),
      ctx,
      probs_TE.shape[-1],
      logits_TE=logits_TE,
      probs_TE=probs_TE,
      **rest,
      solved_E=solved_E,
    )

  def experts_per_token(self, E):
    return 1.0
