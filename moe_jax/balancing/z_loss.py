"""Router z-loss: the mean squared log-partition of the router's logits.

Barret Zoph et al., "ST-MoE: Designing Stable and Transferable Sparse Expert
Models", 2022, arXiv:2202.08906, section 3.3, equation 5 (weight 0.001).

It keeps logits small, where a softmax in low precision is accurate; it does
not balance. (ln E)^2 for zero logits. Real tokens only, before the selection
bias. Mesh-TensorFlow multiplies it by its balancing coefficient once more: a
weight of 0.1 there is 0.001 here.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.balancing import base
from moe_jax.errors import UserError


@registry.register
@dataclasses.dataclass(frozen=True)
class ZLoss(base.Balance):
  """The papers' z-loss.

  Attributes:
    weight: the paper's c_z.
    scope: without effect on a mean by tokens.
    noisy: of the logits with the router's noise (Mesh-TensorFlow, flaxformer,
      Hugging Face); False of the clean ones (st-moe-pytorch).
  """

  weight: float = 0.001
  scope: str = 'group'
  noisy: bool = True

  def stats(self, sums):
    logits_GTE = sums.routing.logits_TE
    if logits_GTE is None:
      raise UserError('z_loss needs a router with [T, E] logits')
    if not self.noisy:
      logits_GTE = sums.routing.terms.get('clean_logits', logits_GTE)
    square_GT = jax.nn.logsumexp(logits_GTE, axis=-1) ** 2
    return {'square': sums.tokens(square_GT), 'tokens': sums.count()}

  def loss(self, stats, state, router):
    return stats['square'] / jnp.maximum(stats['tokens'], 1)
