"""BASE layers: the best assignment that gives all experts as many tokens.

Mike Lewis et al., "BASE Layers: Simplifying Training of Large, Sparse Models",
ICML 2021, arXiv:2103.16716, sections 3.1 and 3.2 (recalled). In training each
token of the group goes to one expert so that every expert has n / E of the n
real tokens (rounded up) and the logits sum to the most; in evaluation each goes
to its best expert. The weight is sigmoid(logit).

Found by an auction (Bertsekas 1992, "Auction algorithms for network flow
problems"), in which tokens bid for the seats of experts: within n * tolerance
of the optimum, in units of the largest logit. Tokens without a seat after
`iterations` rounds take what is left. Needs no balancing rule and capacity
factor 1. Not causal in training.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.errors import UserError
from moe_jax.routers import base


@registry.register
@dataclasses.dataclass(frozen=True)
class BaseLayer(base.Matrix):
  """tolerance, iterations: of the auction; init_std: as `base.init_linear`."""

  tolerance: float = 1e-3
  iterations: int = 1000
  causal, compares = False, 'train'

  def __post_init__(self):
    super().__post_init__()
    for name in ('tolerance', 'iterations'):
      if not getattr(self, name) > 0:
        raise UserError(
          f'base_layer: {name}={getattr(self, name)} must be above 0'
        )

  def check(self, E):
    base.check_k('base_layer', 2, E)  # a bid needs a second best

  def __call__(self, params, x_TD, ctx):
    logits_TE = base.linear_logits(params, x_TD)
    scores_TE, solved_E = base.biased(logits_TE, ctx, 1)
    if ctx.train:
      expert_T1 = self.auction(scores_TE, ctx.mask_T)[:, None]
    else:
      expert_T1 = jnp.argmax(scores_TE, -1, keepdims=True)
    chosen = base.fixed(expert_T1, ctx, solved_E)
    # Padding is at expert E, which has no logit; its weight becomes 0.
    near_T1 = jnp.minimum(chosen.expert_TK, ctx.num_experts - 1)
    weight_T1 = jax.nn.sigmoid(jnp.take_along_axis(logits_TE, near_T1, -1))
    return chosen.routing(weight_T1, **base.affinities(logits_TE))

  def auction(self, scores_TE, mask_T):
    """int32 [T], the expert of each token; E for padding."""
    T, E = scores_TE.shape
    seats, place_T = -(-mask_T.sum() // E), jnp.arange(T)
    eps = self.tolerance * jnp.abs(scores_TE).max()
    free = lambda expert_T: (expert_T == E) & mask_T
    count = lambda expert_T: jnp.zeros(E + 1, jnp.int32).at[expert_T].add(1)

    def bid(state):
      expert_T, bid_T, step = state
      # A full expert costs its lowest bid, others nothing.
      price_E = jnp.full(E + 1, jnp.inf).at[expert_T].min(bid_T)
      price_E = jnp.where(count(expert_T) < seats, 0.0, price_E)[:E]
      value_T2, best_T2 = jax.lax.top_k(scores_TE - price_E, 2)
      best_T, free_T = best_T2[:, 0], free(expert_T)
      more_T = value_T2[:, 0] - value_T2[:, 1] + eps
      bid_T = jnp.where(free_T, price_E[best_T] + more_T, bid_T)
      expert_T = jnp.where(free_T, best_T, expert_T)
      queue_T, _, order_T = jax.lax.sort(
        (expert_T, -bid_T, place_T), num_keys=2
      )
      rank_T = place_T - jnp.searchsorted(queue_T, queue_T)
      queue_T = jnp.where(rank_T < seats, queue_T, E)
      return expert_T.at[order_T].set(queue_T), bid_T, step + 1

    goes_on = lambda s: free(s[0]).any() & (s[2] < self.iterations)
    zero_T = 0 * mask_T.astype(jnp.int32)
    start = zero_T + E, 0 * scores_TE[:, 0], zero_T[0]
    expert_T = jax.lax.while_loop(goes_on, bid, start)[0]
    room_E = jnp.cumsum(seats - count(expert_T)[:E])
    late_T = jnp.cumsum(free(expert_T)) - 1
    late_T = jnp.searchsorted(room_E, late_T, side='right')
    return jnp.where(free(expert_T), late_T, expert_T)

  def experts_per_token(self, E):
    return 1.0
