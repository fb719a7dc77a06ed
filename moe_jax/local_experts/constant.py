"""Experts that mix the token with a learned vector.

Peng Jin et al., "MoE++: Accelerating Mixture-of-Experts Methods with
Zero-Computation Experts", 2024, arXiv:2410.07348, section 3.1, equations 4 and
5: a1 x + a2 v with (a1, a2) = softmax(W_c x), W_c and v of each expert.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.local_experts import base


@registry.register
@dataclasses.dataclass(frozen=True)
class Constant(base.LocalExperts):
  """count: how many; init_std: of W_c and v (the paper gives none)."""

  count: int = 1
  init_std: float = 0.02

  def __post_init__(self):
    base.check_count('constant', self.count)

  def init(self, key, D):
    key_w, key_v = jax.random.split(key)
    draw = lambda k, *shape: self.init_std * jax.random.normal(k, shape)
    return {
      'kernel': draw(key_w, self.count, D, 2),
      'vector': draw(key_v, self.count, D),
    }

  def __call__(self, params, x_TD, weight_TJ):
    x_TD = x_TD.astype(jnp.float32)
    logits_TJ2 = jnp.einsum(
      'td,jdc->tjc',
      x_TD,
      params['kernel'],
      precision=jax.lax.Precision.HIGHEST,
    )
    share_TJ2 = weight_TJ[..., None] * jax.nn.softmax(logits_TJ2)
    y_TD = share_TJ2[..., 0].sum(-1, keepdims=True) * x_TD
    return y_TD + jnp.einsum(
      'tj,jd->td',
      share_TJ2[..., 1],
      params['vector'],
      precision=jax.lax.Precision.HIGHEST,
    )
