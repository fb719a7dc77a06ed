"""Token embedding and output head, tied or not."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from moe_jax.kernels import permute
from moe_jax.layers import boxes


class Embedding(nn.Module):
  """Token table [V, D] and logits.

  Attributes:
    vocab_size: V.
    d_model: D.
    tied: logits are products with the token table; else with a head of their
      own.
    dtype: of the embeddings; logits are float32.
    mesh: None for one device.
    embedding_scale: on the embeddings.
    logit_scale: on the logits; 0 is 1, or D^-1/2 of a tied table, as in T5,
      since its entries have unit variance.
  """

  vocab_size: int
  d_model: int
  tied: bool = True
  dtype: Any = jnp.float32
  mesh: Any = None
  embedding_scale: float = 1.0
  logit_scale: float = 0.0

  def setup(self):
    V, D = self.vocab_size, self.d_model
    init = boxes.boxed(
      nn.initializers.normal(1.0), ('vocab', 'embed'), self.mesh
    )
    self.table = self.param('table', init, (V, D))
    if not self.tied:
      init = nn.initializers.variance_scaling(1, 'fan_in', 'truncated_normal')
      init = boxes.boxed(init, ('embed', 'vocab'), self.mesh)
      self.head = self.param('head', init, (D, V))

  def __call__(self, ids_BL):
    """int32 ids [B, L] -> embeddings [B, L, D]."""
    x_BLD = permute.look_up(self.table, jnp.asarray(ids_BL), self.dtype)
    return x_BLD * self.embedding_scale

  def logits(self, x_BLD):
    """[B, L, D] -> float32 [B, L, V]; products in `dtype`, sums in float32."""
    # Not turned: a CPU takes several times as long for the gradient then.
    spec = 'bld,vd->blv' if self.tied else 'bld,dv->blv'
    scale = self.logit_scale or (self.d_model**-0.5 if self.tied else 1.0)
    weight = (self.table if self.tied else self.head) * scale
    return jnp.einsum(
      spec,
      x_BLD.astype(self.dtype),
      weight.astype(self.dtype),
      preferred_element_type=jnp.float32,
    )


class RelativeBias(nn.Module):
  """T5's relative position bias: one scalar a head and distance bucket.

  Raffel et al. 2020, arXiv:1910.10683, section 2.1: half of the buckets are
  exact distances, the rest logarithmic up to `max_distance`; shared by the
  layers of a stack. Bidirectional stacks give each sign half of the buckets.
  """

  num_heads: int
  bidirectional: bool
  num_buckets: int = 32
  max_distance: int = 128

  @nn.compact
  def __call__(self, query_BL, key_BS):
    """Positions [B, L] and [B, S] -> float32 bias [B, H, L, S]."""
    table_NH = self.param(
      'table',
      boxes.boxed(nn.initializers.normal(1.0), (None, 'heads')),
      (self.num_buckets, self.num_heads),
    )
    distance_BLS = key_BS[:, None] - query_BL[:, :, None]
    bias_BLSH = jnp.asarray(table_NH)[self._bucket(distance_BLS)]
    return jnp.moveaxis(bias_BLSH, -1, 1)

  def _bucket(self, distance):
    buckets, first = self.num_buckets, 0
    if self.bidirectional:
      buckets //= 2
      first = jnp.where(distance > 0, buckets, 0)
      distance = jnp.abs(distance)
    else:
      distance = jnp.maximum(-distance, 0)
    exact = buckets // 2
    # The floor of 1 only keeps the log finite where the exact bucket is taken.
    ratio = jnp.log(jnp.maximum(distance, 1) / exact) / jnp.log(
      self.max_distance / exact
    )
    far = exact + (ratio * (buckets - exact)).astype(jnp.int32)
    far = jnp.minimum(far, buckets - 1)
    return first + jnp.where(distance < exact, distance, far)
