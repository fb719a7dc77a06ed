"""Expert choice: each expert takes its best tokens of the group.

Yanqi Zhou et al., "Mixture-of-Experts with Expert Choice Routing", NeurIPS
2022, arXiv:2202.09368, section 3.2. The combine weights are the softmax
probabilities over experts, not renormalised by token.

Balanced by construction, so no balancing rule is needed and a selection bias
has no effect. A token may be taken by many experts or by none. Differs from the
paper: T c / E is rounded up; padding is taken last, and counts as nobody (codes
that multiply its scores by 0 may prefer it to real scores that underflow).
The whole group is seen: not causal, and tokens that do not make whole groups
(one to decode) are refused. The capped form is `capped_expert_choice`.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.routers import base


@registry.register
@dataclasses.dataclass(frozen=True)
class ExpertChoice(base.Matrix):
  """Each expert takes ceil(T choices / E) tokens.

  Attributes:
    choices: c, mean experts of a token (the paper's capacity factor).
  """

  choices: float = 2.0
  causal, compares = False, 'always'

  def __post_init__(self):
    base.check_choices('expert_choice', self.choices)

  def check(self, E):
    base.check_choices('expert_choice', self.choices, E)

  def __call__(self, params, x_TD, ctx):
    logits_TE = base.linear_logits(params, x_TD)
    probs_TE = jax.nn.softmax(logits_TE)
    T, E = probs_TE.shape
    scores_TE = jnp.where(ctx.mask_T[:, None], probs_TE, -1.0)
    rows = base.rows(self.choices, T, E)
    token_EC = base.best_tokens(scores_TE.T, ctx, rows)
    return base.from_experts(
      *(token_EC, jnp.take_along_axis(probs_TE.T, token_EC, -1), ctx),
      logits_TE=logits_TE,
      probs_TE=probs_TE,
    )

  def experts_per_token(self, E):
    return float(self.choices)
