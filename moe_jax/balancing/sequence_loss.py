"""DeepSeek-V3's complementary sequence-wise loss: balance in every sequence.

DeepSeek-AI, "DeepSeek-V3 Technical Report", 2024, arXiv:2412.19437, section
2.1.2, equations 17 to 20 (weight 0.0001, beside `loss_free_bias`).

Sum over experts of f_i P_i: P_i is the mean over a sequence of the affinities
divided by their sum, f_i is E / (K T) times the number of tokens with i among
the K largest AFFINITIES: without the selection bias and without a limit to
groups of experts, so that it is not the load. 1 for balanced routing; f carries
no gradient. Needs a router with [T, E] affinities and K choices a token.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.balancing import base
from moe_jax.errors import UserError
from moe_jax.kernels import gates


@registry.register
@dataclasses.dataclass(frozen=True)
class SequenceLoss(base.Balance):
  """weight: of the loss. scope: segments of the sums (paper: the sequence)."""

  weight: float = 0.0001
  scope: str = 'sequence'

  def stats(self, sums):
    r = sums.routing
    probs_GTE = base.affinities(r, 'sequence_loss')
    if r.choices is None:
      raise UserError('sequence_loss needs a router with K choices a token')
    # Logarithms tell apart what is 0 as a probability.
    level_GTE = probs_GTE if r.log_probs_TE is None else r.log_probs_TE
    _, best_GTK = jax.lax.top_k(jax.lax.stop_gradient(level_GTE), r.choices)
    best_GTK = jnp.where(sums.mask_GT[..., None], best_GTK, r.num_experts)
    G, T, K = best_GTK.shape
    unbiased = r.replace(
      token_N=jnp.tile(jnp.arange(T), (G, K)),
      expert_N=best_GTK.transpose(0, 2, 1).reshape(G, K * T),
      first_fit=False,
    )
    return {
      'load': dataclasses.replace(sums, routing=unbiased).load(),
      'prob': sums.tokens(gates.shares(probs_GTE)),
      'tokens': sums.count(),
    }

  def loss(self, stats, state, router):
    load_SE = stats['load'].astype(jnp.float32)
    f_SE = load_SE / jnp.maximum(load_SE.sum(-1, keepdims=True), 1)
    P_SE = stats['prob'] / jnp.maximum(stats['tokens'], 1)[:, None]
    return load_SE.shape[-1] * (f_SE * P_SE).sum(-1)
