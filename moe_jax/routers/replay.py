"""Replay: given experts, with the router's own weights.

What a run did is recorded (`MoE.record`) and made to happen again, in another
layer, dispatch, precision or codebase; or experts are forced by hand. The batch
brings 'forced' [B, L, M, k], the experts in each of M MoE layers; a number
outside of 0 to E - 1 is nobody. The weights are the softmax at these experts,
renormalised or not, so that gradients flow as they did. Not a paper's method;
named routing replay in reinforcement learning of MoE models.
"""

import dataclasses

import jax.numpy as jnp

from moe_jax import registry
from moe_jax.errors import UserError
from moe_jax.kernels import gates
from moe_jax.routers import base


@registry.register
@dataclasses.dataclass(frozen=True)
class Replay(base.Choosing, base.Linear):
  """k: experts of a token. renormalize: the weights sum to 1."""

  k: int = 2
  renormalize: bool = True

  def __call__(self, params, x_TD, ctx):
    expert_TK = base.known(ctx, 'forced_TK', 'replay')
    if expert_TK.shape[-1] != self.k:
      raise UserError(
        f'replay: k={self.k}, and {expert_TK.shape[-1]} experts of a token '
        'were given'
      )
    found, E = self.affinities(params, x_TD, ctx), ctx.num_experts
    sent_TK = (expert_TK >= 0) & (expert_TK < E)
    chosen = base.Chosen(jnp.clip(expert_TK, 0, E - 1), ctx)
    weight_TK = chosen.of(found['probs_TE'])
    if self.renormalize:
      log_TK = chosen.of(found['log_probs_TE'])
      weight_TK = gates.shares_of_logs(log_TK, sent_TK)
    return chosen.routing(weight_TK, sent_TK, **found)

  def most_edges(self, T):
    return self.k * T  # the same expert may be given k times
