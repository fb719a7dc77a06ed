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
    found = self.affinities(params, x_TD, ctx)
    chosen = self.choose(found, ctx, self.k, seats=1)
    weight_TK = chosen.of(found['probs_TE'])
    return chosen.routing(weight_TK, **found, first_fit=True)

  def experts_per_token(self, E):
    return 1.0
