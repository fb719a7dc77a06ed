"""Every expert is cut into slices of its hidden width: finer, and the same.

Ethan He et al., "Upcycling Large Language Models into Mixture of Experts",
2024, arXiv:2410.07524, virtual groups (recalled), here of a mixture's experts:
each slice has the expert's row of the router, a token has `parts` times as many
choices, and so all slices of what it chose. Where they have a `parts`th of the
weight each (a softmax, renormalised or not), the last matrix is multiplied by
`parts`, and output biases, which are added `parts` times, are not; raw sigmoids
need no factor. A selection bias is copied where scores are (sigmoids), and
divided where they are divided (a softmax), or it would weigh more than before.

What a router does is tried on random tokens, and one that would choose others
is refused (blocks of nodes by their two best, thresholds).
"""

import dataclasses

from moe_jax import registry
from moe_jax.conversion import splitting
from moe_jax.conversion.methods import base
from moe_jax.errors import UserError


@registry.register
@dataclasses.dataclass(frozen=True)
class Split(base.Method):
  """parts: of each expert. router: of them; '' is the old with more choices."""

  parts: int = 2
  router: str = ''

  def __post_init__(self):
    if self.parts < 2:
      raise UserError(f'split: parts={self.parts}; valid from 2')

  def __call__(self, key, model):
    return splitting.all_experts(model, self.parts, True, self.router)
