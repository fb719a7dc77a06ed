"""MoE++: the logits of the previous MoE layer take part.

Peng Jin et al., "MoE++: Accelerating Mixture-of-Experts Methods with
Zero-Computation Experts", 2024, arXiv:2410.07348, section 3.2, equation 6:
logits = x W + previous logits W_g, and nothing of the second in the first MoE
layer. Top-k of their softmax, raw weights (equation 1).

The zero-computation experts are the layer's: `local_experts=('zero()',
'copy()', 'constant(count=2)')`; with them go the capacity rule
`moe_plus_plus(tau=0.75)` and the balancing rule `heterogeneous_loss(tau=0.75)`.
Differs from the published code, which is for inference, with another router and
doubled inputs. The paper gives no initialisation of W_g; here it is the
router's own.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.routers import base


@registry.register
@dataclasses.dataclass(frozen=True)
class MoePlusPlus(base.Choosing):
  """k: choices (paper: 2). residual: whether W_g is there."""

  k: int = 2
  residual: bool = True
  has_matrix = True

  def init(self, key, E, D):
    key, own = jax.random.split(key)
    params = base.init_linear(key, E, D)
    if self.residual:
      params['residual'] = base.init_linear(own, E, E)['kernel']
    return params

  def init_carry(self, T, E):
    return jnp.zeros((T, E), jnp.float32) if self.residual else ()

  def __call__(self, params, x_TD, ctx):
    logits_TE = base.linear_logits(params, x_TD)
    if self.residual:
      previous = {'kernel': params['residual']}
      logits_TE += base.linear_logits(previous, ctx.carry)
    found = base.affinities(logits_TE)
    chosen = base.choose(found['probs_TE'], ctx, self.k)
    carry = logits_TE if self.residual else ()
    return chosen.routing(chosen.of(found['probs_TE']), **found, carry=carry)
