"""Product keys: k of M^2 experts, found among 2 M half keys.

Guillaume Lample et al., "Large Memory Layers with Product Keys", 2019,
arXiv:1907.05242; PEER (Xu Owen He, "Mixture of A Million Experts", 2024,
arXiv:2407.04153, section 2): expert (a, b) has the key (c_a, c'_b), a query is
scored by the sum of its halves' products, so the k best of M^2 are among the
k^2 pairs of each half's k best. Softmax over the k; several heads, which share
keys and experts.

For experts of one neuron, `mlp(d_ff=1)`, and the dispatch `lookup`. Nothing has
M^2 entries a token: there are no logits, and no balancing rule that needs them.
Differs from PEER: queries are normalised by their root mean square, where the
paper has BatchNorm (no state, no difference between training and evaluation).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.errors import UserError
from moe_jax.kernels import order_statistics
from moe_jax.routers import base


@registry.register
@dataclasses.dataclass(frozen=True)
class ProductKeys(base.Router):
  """heads, k: of a token, k in each (8, 16). d_key: of a query, even (128)."""

  heads: int = 8
  k: int = 16
  d_key: int = 128
  normalize: bool = True
  takes_bias = False

  def __post_init__(self):
    base.check_k('product_keys', self.k)
    if self.heads < 1 or self.d_key < 2 or self.d_key % 2:
      raise UserError(
        f'product_keys: heads={self.heads} must be at least 1 and d_key='
        f'{self.d_key} even'
      )

  def check(self, E):
    M = math.isqrt(E)
    if M * M != E or self.k > M:
      raise UserError(
        f'product_keys: num_experts={E} must be a square of at least k={self.k}'
      )

  def init(self, key, E, D):
    key_q, key_k = jax.random.split(key)
    M, half = math.isqrt(E), self.d_key // 2
    return {
      'query': base.init_linear(key_q, self.heads * self.d_key, D, D**-0.5)[
        'kernel'
      ],
      'keys': jax.random.normal(key_k, (2, M, half)) * half**-0.5,
    }

  def __call__(self, params, x_TD, ctx):
    T, M, (H, K) = x_TD.shape[0], params['keys'].shape[1], (self.heads, self.k)
    query = base.linear_logits({'kernel': params['query']}, x_TD)
    query = query.reshape(T, H, 2, -1)
    if self.normalize:
      square = (query**2).mean((-2, -1), keepdims=True)
      query *= jax.lax.rsqrt(square + 1e-6)
    half_THM = jnp.einsum(
      'thsj,smj->sthm',
      query,
      params['keys'],
      precision=jax.lax.Precision.HIGHEST,
    )
    best, place = order_statistics.top_k(half_THM, K)
    pair_THKK = best[0][..., :, None] + best[1][..., None, :]
    score_THK, at_THK = jax.lax.top_k(pair_THKK.reshape(T, H, K * K), K)
    pick = lambda v, i: jnp.take_along_axis(v, i, -1)
    expert_THK = pick(place[0], at_THK // K) * M + pick(place[1], at_THK % K)
    chosen = base.Chosen(expert_THK.reshape(T, H * K), ctx)
    return chosen.routing(jax.nn.softmax(score_THK).reshape(T, H * K))

  def most_edges(self, T):
    return self.heads * T  # heads may agree

  def experts_per_token(self, E):
    return float(self.heads * self.k)
