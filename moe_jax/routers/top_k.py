"""Top-k routing: softmax over all experts, then the k largest.

Shazeer et al., "Outrageously Large Neural Networks", ICLR 2017,
arXiv:1701.06538, section 2; as used without noise by Mixtral (Jiang et al.
2024, arXiv:2401.04088, section 2.1: renormalised, the same as a softmax over
the chosen logits) and OLMoE (Muennighoff et al. 2024, arXiv:2409.02060,
section 2: raw).

With binding capacity and k > 1 the seating order (all first choices of the
group, then all second) lets a later token take an earlier one's seat: not
causal then, causal while nothing drops.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.routers import base


@registry.register
@dataclasses.dataclass(frozen=True)
class TopK(base.Router):
  """k experts a token.

  Attributes:
    k: experts of a token.
    renormalize: True divides the weights by their sum before drops, 'kept'
      after drops (over the seated choices only), False leaves the raw
      probabilities.
  """

  k: int = 2
  renormalize: bool | str = True

  def __post_init__(self):
    if not isinstance(self.k, int) or self.k < 1:
      raise ValueError(f'top_k: k={self.k!r} must be a whole number from 1')
    if self.renormalize not in (True, False, 'kept'):
      raise ValueError(
        f"top_k: renormalize={self.renormalize!r}; valid: True, False, 'kept'"
      )
    if self.k == 1 and self.renormalize:
      raise ValueError(
        f'top_k: k=1 with renormalize={self.renormalize!r} makes every weight 1'
        ' and leaves the router without a gradient; use renormalize=False'
      )

  def check(self, E):
    if self.k > E:
      raise ValueError(f'top_k: k={self.k} exceeds num_experts={E}')

  def init(self, key, E, D):
    return base.init_linear(key, E, D)

  def __call__(self, params, x_TD, ctx):
    logits_TE = base.linear_logits(params, x_TD)
    probs_TE = jax.nn.softmax(logits_TE)
    # Integers carry no gradient: it reaches the router through the gathered
    # probabilities alone.
    _, expert_TK = jax.lax.top_k(probs_TE + ctx.selection_bias_E, self.k)
    weight_TK = jnp.take_along_axis(probs_TE, expert_TK, -1)
    if self.renormalize is True:
      weight_TK /= weight_TK.sum(-1, keepdims=True)
    return base.from_choices(
      expert_TK,
      weight_TK,
      ctx,
      probs_TE.shape[-1],
      logits_TE=logits_TE,
      probs_TE=probs_TE,
      renormalize_kept=self.renormalize == 'kept',
    )

  def experts_per_token(self, E):
    return float(self.k)
