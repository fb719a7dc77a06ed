"""No-token-left-behind: an overflowed token tries its next best expert.

William Fedus et al., "Switch Transformers: Scaling to Trillion Parameter Models
with Simple and Efficient Sparsity", JMLR 2022, arXiv:2101.03961, appendix B.
Top-1 routing in rounds: tokens that found their expert full go to the second
most probable one, then the third, ..., where seats are left. The weight is the
raw probability of the expert that took the token.

The paper saw no benefit. Not causal where capacity binds: all first choices
are seated before anybody's second. The balancing losses see first choices.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.routers import base


@registry.register
@dataclasses.dataclass(frozen=True)
class NoTokenLeftBehind(base.Linear):
  """k: experts that a token tries (Mesh-TensorFlow's `ntlb`: 4)."""

  k: int = 4
  first_fit = True

  def __post_init__(self):
    super().__post_init__()
    base.check_k('no_token_left_behind', self.k)

  def check(self, E):
    base.check_k('no_token_left_behind', self.k, E)

  def __call__(self, params, x_TD, ctx):
    logits_TE, probs_TE, rest = self.affinities(params, x_TD, ctx)
    scores_TE, solved_E = self.scores(logits_TE, probs_TE, ctx, 1)
    _, expert_TK = jax.lax.top_k(scores_TE, self.k)
    return base.from_choices(
      expert_TK,
      jnp.take_along_axis(probs_TE, expert_TK, -1),
      ctx,
      probs_TE.shape[-1],
      logits_TE=logits_TE,
      probs_TE=probs_TE,
      **rest,
      solved_E=solved_E,
      first_fit=True,
    )

  def experts_per_token(self, E):
    return 1.0
