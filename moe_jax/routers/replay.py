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
class Replay(base.Linear):
  """k: experts of a token. renormalize: the weights sum to 1."""

  k: int = 2
  renormalize: bool = True

  def __post_init__(self):
    super().__post_init__()
    base.check_k('replay', self.k)

  def check(self, E):
    base.check_k('replay', self.k, E)

  def __call__(self, params, x_TD, ctx):
    expert_TK = base.known(ctx, 'forced_TK', 'replay')
    if expert_TK.shape[-1] != self.k:
      raise UserError(
        f'replay: k={self.k}, and {expert_TK.shape[-1]} experts of a token '
        'were given'
      )
    logits_TE, probs_TE, rest = self.affinities(params, x_TD, ctx)
    E = probs_TE.shape[-1]
    sent_TK = (expert_TK >= 0) & (expert_TK < E)
    expert_TK = jnp.where(sent_TK, expert_TK, E)
    chosen_TK = jnp.minimum(expert_TK, E - 1)
    if self.renormalize:
      log_TK = jnp.take_along_axis(rest['log_probs_TE'], chosen_TK, -1)
      weight_TK = gates.shares_of_logs(log_TK, sent_TK)
    else:
      weight_TK = jnp.take_along_axis(probs_TE, chosen_TK, -1)
      weight_TK = jnp.where(sent_TK, weight_TK, 0.0)
    return base.from_choices(
      *(expert_TK, weight_TK, ctx, E),
      logits_TE=logits_TE,
      probs_TE=probs_TE,
      **rest,
    )

  def most_edges(self, T):
    return self.k * T  # the same expert may be given k times

  def experts_per_token(self, E):
    return float(self.k)
