"""SparseMixer-v2: one sampled expert, and a gradient for having sampled it.

Liyuan Liu et al., "GRIN: GRadient-INformed MoE", 2024, arXiv:2409.12136,
section 2 (recalled; checked against the released code), after SparseMixer
(Liyuan Liu et al., "Sparse Backpropagation for MoE Training", 2023,
arXiv:2310.00811). In training an expert i is drawn from p, the softmax over the
logits that pass the bar, (max - z) / max(|z|, max) <= 2 eps: those that jitter
of eps could make the largest. Its result is multiplied by p_i, or by p_i / 3 in
three draws of four; the derivative by the logits is that of p_i in both cases.
Over the draws that is sum_i grad p_i (f(p_i y_i) - f(0)) with the difference by
Heun's third-order rule, h (f'(h) / 4 + 3 f'(h / 3) / 4), for all experts but
the most probable, whose factor is always 1 (Euler's rule). Evaluation takes the
most probable, times its p_i.

Differs: k=1 alone (GRIN draws its second expert from the others the same way);
a selection bias shifts the logits that are sampled, never the weights. The
first version (factor 1 or 1/2, gradient doubled, a learned gain) is left out.
Needs the 'router' random stream in training. Causal at any capacity.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.errors import UserError
from moe_jax.routers import base


@registry.register
@dataclasses.dataclass(frozen=True)
class SparseMixer(base.Choosing, base.Matrix):
  """eps: of the bar (code: 0.1)."""

  eps: float = 0.1
  k = 1

  def __post_init__(self):
    super().__post_init__()
    if not self.eps > 0:
      raise UserError(f'sparse_mixer: eps={self.eps} must be above 0')

  def __call__(self, params, x_TD, ctx):
    logits_TE = base.linear_logits(params, x_TD)
    z_TE = jax.lax.stop_gradient(logits_TE)
    top_T1 = z_TE.max(-1, keepdims=True)
    # The product, not the ratio: all logits may be 0.
    bar_TE = 2 * self.eps * jnp.maximum(jnp.abs(z_TE), top_T1)
    open_TE = top_T1 - z_TE <= bar_TE
    gates_TE = jax.nn.softmax(jnp.where(open_TE, logits_TE, -jnp.inf))
    noise_TE = 0.0
    if ctx.train:
      key = base.noise_key(ctx, 'sample')
      noise_TE = jax.random.gumbel(key, logits_TE.shape)
    among = lambda v_TE: jnp.where(open_TE, v_TE, -jnp.inf) + noise_TE
    chosen = base.choose(logits_TE, ctx, 1, then=among)
    expert_T1, weight_T1 = chosen.expert_TK, chosen.of(gates_TE)
    if ctx.train:
      draw_T1 = jax.random.uniform(base.noise_key(ctx, 'heun'), top_T1.shape)
      whole_T1 = (expert_T1 == jnp.argmax(gates_TE, -1, keepdims=True)) | (
        draw_T1 > 0.75
      )
      less_T1 = jnp.where(whole_T1, 0.0, -2 / 3) * weight_T1
      weight_T1 += jax.lax.stop_gradient(less_T1)
    return chosen.routing(weight_T1, **base.affinities(logits_TE))
