"""AdaMoE: some choices may fall on null experts, and cost nothing.

Zihao Zeng et al., "AdaMoE: Token-Adaptive Routing with Null Experts for
Mixture-of-Experts Language Models", 2024, arXiv:2406.13233, section 3: top-k
over true and null experts together, with a larger k; the weights are
renormalised over the true experts among them. A token whose choices are all
null gets zeros.

Give the layer `local_experts=('zero(count=m)',)`, and the balancing rule
`null_loss`. Without null experts it is Mixtral's top-k. Differs from the paper:
its null rows start as copies of the true ones; here they are drawn.
"""

import dataclasses

from moe_jax import registry
from moe_jax.kernels import gates
from moe_jax.routers import base


@registry.register
@dataclasses.dataclass(frozen=True)
class Adamoe(base.Choosing, base.Linear):
  """k: choices, null ones included (paper: 3 of 8 + 8); else `base.Linear`."""

  k: int = 3
  least_k = 2

  def __call__(self, params, x_TD, ctx):
    found = self.affinities(params, x_TD, ctx)
    chosen = self.choose(found, ctx, self.k)
    true_TK = chosen.expert_TK < ctx.num_experts - ctx.num_local
    log_TK = chosen.of(found['log_probs_TE'])
    return chosen.routing(gates.shares_of_logs(log_TK, true_TK), **found)
