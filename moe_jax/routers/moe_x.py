"""MoE-X: tokens go where few neurons would fire.

Xingyi Yang et al., "Mixture of Experts Made Intrinsically Interpretable", ICML
2025, arXiv:2503.07639, section 4 (read through a summary): with the weights of
each input of an expert taken as normal, of mean mu and variance sigma^2 over
its hidden units, a unit fires with probability (1 + erf(z)) / 2 where

  z = mu x / sqrt(2 sum_i x_i^2 sigma_i^2)

and the logits are -erf(z). Top-k, softmax over the chosen. No parameters: the
gradient reaches the experts' first matrix, which it makes sparser.

Goes with ReLU experts, `mlp(activation='relu')`; biases are ignored. Logits lie
between -1 and 1, so that k chosen weights differ by e^2 at most.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.routers import base


@registry.register
@dataclasses.dataclass(frozen=True)
class MoeX(base.Choosing):
  """k: experts of a token. through: whether experts learn from the gate."""

  k: int = 2
  through: bool = True
  reads_experts = True

  def init(self, key, E, D):
    return {}

  def __call__(self, params, x_TD, ctx):
    mean_ED = base.feature(ctx, 'mean', 'moe_x')
    var_ED = base.feature(ctx, 'variance', 'moe_x')
    if not self.through:
      mean_ED, var_ED = jax.lax.stop_gradient((mean_ED, var_ED))
    x_TD = x_TD.astype(jnp.float32)
    up_TE = base.linear_logits({'kernel': mean_ED.T}, x_TD)
    var_TE = base.linear_logits({'kernel': var_ED.T}, x_TD**2)
    z_TE = up_TE * jax.lax.rsqrt(2 * var_TE + 1e-12)
    logits_TE = -jax.scipy.special.erf(z_TE)
    chosen = base.choose(logits_TE, ctx, self.k)
    weight_TK = jax.nn.softmax(chosen.of(logits_TE))
    return chosen.routing(weight_TK, **base.affinities(logits_TE))
