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

from moe_jax import registry
from moe_jax.routers import base


@registry.register
@dataclasses.dataclass(frozen=True)
class Switch(base.Choosing, base.Linear):
  """Options: those of `base.Linear`."""

  k = 1

  def __call__(self, params, x_TD, ctx):
    found = self.affinities(params, x_TD, ctx)
    chosen = self.choose(found, ctx, 1)
    return chosen.routing(chosen.of(found['probs_TE']), **found)
