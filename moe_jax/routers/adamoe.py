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

import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.errors import UserError
from moe_jax.kernels import gates
from moe_jax.routers import base


@registry.register
@dataclasses.dataclass(frozen=True)
class Adamoe(base.Linear):
  """k: choices, null ones included (paper: 3 of 8 + 8); else `base.Linear`."""

  k: int = 3

  def __post_init__(self):
    super().__post_init__()
    base.check_k('adamoe', self.k)
    if self.k == 1:
      raise UserError(
        'adamoe: k=1 makes every weight 1 and leaves the router without a '
        'gradient; use k=2 or more'
      )

  def check(self, E):
    base.check_k('adamoe', self.k, E)

  def __call__(self, params, x_TD, ctx):
    logits_TE, probs_TE, rest = self.affinities(params, x_TD, ctx)
    E = probs_TE.shape[-1]
    scores_TE, solved_E = self.scores(logits_TE, probs_TE, ctx, self.k)
    _, expert_TK = jax.lax.top_k(scores_TE, self.k)
    log_TK = jnp.take_along_axis(rest['log_probs_TE'], expert_TK, -1)
    weight_TK = gates.shares_of_logs(log_TK, expert_TK < E - ctx.num_local)
    return base.from_choices(
      *(expert_TK, weight_TK, ctx, E),
      logits_TE=logits_TE,
      probs_TE=probs_TE,
      **rest,
      solved_E=solved_E,
    )

  def experts_per_token(self, E):
    return float(self.k)
