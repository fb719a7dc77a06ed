"""Keys and values out of one small vector a token: multi-head latent attention.

DeepSeek-AI, "DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-
Experts Language Model", 2024, arXiv:2405.04434, section 2.1; DeepSeek-V3,
arXiv:2412.19437, section 2.1.1.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from moe_jax.errors import UserError
from moe_jax.kernels import projection
from moe_jax.layers import attention, norms

# Of the latents' norms, whatever the other norms have (DeepSeek's code).
_EPS = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latent(attention.Kind):
  """A latent vector a token, from which all heads' keys and values are made.

  What is turned by positions is kept apart: a part of each query, and one key
  for all heads.

  Attributes:
    kv_rank: R, width of the latent.
    d_nope: of a head, of what is not turned.
    d_rope: of a head, of what is.
    d_value: of a head's value.
    q_rank: width of a latent for queries; 0 makes them from the input.
  """

  WIDTH = 'd_rope'

  kv_rank: int
  d_nope: int
  d_rope: int
  d_value: int
  q_rank: int = 0

  def __post_init__(self):
    self.at_least(1, 'kv_rank', 'd_nope', 'd_rope', 'd_value')
    self.at_least(0, 'q_rank')
    super().__post_init__()
    if not self.positions.base:
      raise UserError("mla: its positions turn; 'rope' is wanted")

  @property
  def turned_width(self):
    return self.d_rope

  @property
  def width(self):
    return self.num_heads * (self.d_nope + self.d_rope + self.d_value) / 2

  @property
  def module(self):
    return LatentAttention

  def near(self, query_BL1, key_B1S):
    return None

  def keys(self, length, causal):
    return length


class LatentAttention(attention.Shell):
  """Runs a `Latent`; self-attention alone."""

  @nn.compact
  def __call__(
    self,
    x_BLD,
    y_BLD,
    mask_BLS,
    position_BL,
    bias_BHLS=None,
    cached: attention.Cached | None = None,
  ):
    """As `heads.Attention`; `y` is `x`, and there is no bias."""
    del y_BLD, bias_BHLS
    kind, D = self.kind, x_BLD.shape[-1]
    H, R, N, V = kind.num_heads, kind.kv_rank, kind.d_nope, kind.d_value
    x_BLD = x_BLD.astype(self.dtype)
    J = N + kind.d_rope
    scale = kind.scale or J**-0.5
    turn = kind.positions.turn
    norm = lambda name: norms.RMSNorm(self.dtype, _EPS, name=name)
    q_BLHJ = self._queries(x_BLD, norm)
    q_BLHP = turn(q_BLHJ[..., N:], position_BL)
    latent_DR = self.kernel('latent', (D, R + kind.d_rope), ('embed', None), D)
    both_BLR = projection.project('bld,dr->blr', x_BLD, latent_DR)
    c_BSR = norm('latent_norm')(both_BLR[..., :R])
    k_BSP = turn(both_BLR[:, :, None, R:], position_BL)[:, :, 0]
    expand_RHJ = self.kernel('expand', (R, H, N + V), (None, 'heads', None), R)
    if cached:
      # What is cached is small, and stays so: the heads' matrices go to the
      # queries and to what comes out, so that one key serves all of them.
      c_BSR = cached.append(self, 'latent', c_BSR)
      k_BSP = cached.append(self, 'key', k_BSP)
      in_RHN = expand_RHJ[..., :N].astype(self.dtype)
      q_BLHR = jnp.einsum('blhn,rhn->blhr', q_BLHJ[..., :N], in_RHN)
      q_BLHJ = jnp.concatenate([q_BLHR, q_BLHP], -1)
      k_BSKJ = jnp.concatenate([c_BSR, k_BSP], -1)[:, :, None]
      q_BLHJ = self.spread(q_BLHJ)[0]
      out_BLHR = self.attend(q_BLHJ, k_BSKJ, c_BSR[:, :, None], mask_BLS, scale)
      out_RHV = expand_RHJ[..., N:].astype(self.dtype)
      out_BLHV = jnp.einsum('blhr,rhv->blhv', out_BLHR, out_RHV)
    else:
      kv_BSHJ = projection.project('bsr,rhj->bshj', c_BSR, expand_RHJ)
      shape = (*kv_BSHJ.shape[:3], kind.d_rope)
      k_BSHP = jnp.broadcast_to(k_BSP[:, :, None], shape)
      q_BLHJ = jnp.concatenate([q_BLHJ[..., :N], q_BLHP], -1)
      k_BSHJ = jnp.concatenate([kv_BSHJ[..., :N], k_BSHP], -1)
      qkv = self.spread(q_BLHJ, k_BSHJ, kv_BSHJ[..., N:])
      out_BLHV = self.attend(*qkv, mask_BLS, scale)
    wo_HVD = self.kernel('out', (H, V, D), ('heads', None, 'embed'), H * V)
    return self.whole(projection.project('blhj,hjd->bld', out_BLHV, wo_HVD))

  def _queries(self, x_BLD, norm):
    kind, D = self.kind, x_BLD.shape[-1]
    H, J, R = kind.num_heads, kind.d_nope + kind.d_rope, kind.q_rank
    if not R:
      w_DHJ = self.kernel('query', (D, H, J), ('embed', 'heads', None), D)
      return projection.project('bld,dhj->blhj', x_BLD, w_DHJ)
    down_DR = self.kernel('query_down', (D, R), ('embed', None), D)
    c_BLR = norm('query_norm')(
      projection.project('bld,dr->blr', x_BLD, down_DR)
    )
    w_RHJ = self.kernel('query', (R, H, J), (None, 'heads', None), R)
    return projection.project('blr,rhj->blhj', c_BLR, w_RHJ)
