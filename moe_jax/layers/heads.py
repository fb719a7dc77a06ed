"""Heads that each have, or share, their keys and values: self and cross."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.errors import UserError
from moe_jax.kernels import projection
from moe_jax.layers import attention, norms

BIASES = ('none', 'qkv', 'all')
QK_NORMS = ('head', 'width', 'turned')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heads(attention.Kind):
  """H queries and K keys and values a token, of width J.

  Attributes:
    d_head: J.
    kv_heads: K, a divisor of H; 0 is H.
    bias: vectors added after the projections: 'none', 'qkv', or 'all', the
      output's too.
    qk_norm: RMS norms of queries and keys: False; True or 'head', of each head
      with one gain for all, before they are turned (Qwen3); 'width', of all
      heads together (OLMoE); 'turned', of each head without a gain, after they
      were turned and only where they are (Llama 4).
    clip: bound on all numbers of queries, keys and values, after those norms
      that are not 'turned' (OLMoE's clip_qkv); 0 is none.
    sinks: a learned logit a head beside those of the keys, whose weight goes
      nowhere (gpt-oss; Xiao et al. 2024, arXiv:2309.17453, section 3.3).
    temperature: (floor, factor): queries of far positions t are multiplied by
      1 + factor x ln(1 + floor((t + 1) / floor)) (Llama 4; Nakanishi 2025,
      arXiv:2501.19399, is its idea); () is none.
  """

  WIDTH = 'd_head'

  d_head: int
  kv_heads: int = 0
  bias: str = 'none'
  qk_norm: bool | str = False
  clip: float = 0.0
  sinks: bool = False
  temperature: tuple[float, ...] = ()

  def __post_init__(self):
    self.at_least(1, 'num_heads', 'd_head')
    self.at_least(0, 'clip', 'kv_heads')
    if self.num_heads % self.K:
      raise UserError(
        f'kv_heads={self.K} must divide num_heads={self.num_heads}'
      )
    if self.bias not in BIASES:
      raise registry.unknown('bias', str(self.bias), BIASES)
    if self.qk_norm not in (True, False, *QK_NORMS):
      valid = 'False', 'True', *QK_NORMS
      raise registry.unknown('qk_norm', str(self.qk_norm), valid)
    if self.temperature and not (
      len(self.temperature) == 2 and self.temperature[0] > 0
    ):
      raise UserError(
        f'temperature={self.temperature}; (floor, factor) with a floor above 0 '
        'is wanted, or ()'
      )
    super().__post_init__()

  @property
  def K(self) -> int:  # pylint: disable=invalid-name
    return self.kv_heads or self.num_heads

  @property
  def turned_width(self):
    return self.d_head

  @property
  def width(self):
    return self.num_heads * self.d_head

  @property
  def module(self):
    return Attention


@dataclasses.dataclass(frozen=True, kw_only=True)
class Full(Heads):
  """All of the token's segment, or what of it is not later."""

  def near(self, query_BL1, key_B1S):
    return None

  def keys(self, length, causal):
    return length


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window(Heads):
  """Keys less than `size` away (Beltagy et al. 2020, arXiv:2004.05150).

  Of a causal stack the token itself and size - 1 before it. They are masked:
  no product is saved.
  """

  size: int

  def __post_init__(self):
    _check_size(self, 'window')
    super().__post_init__()

  def near(self, query_BL1, key_B1S):
    return jnp.abs(query_BL1 - key_B1S) < self.size

  def keys(self, length, causal):
    return min(length, self.size if causal else 2 * self.size - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chunk(Heads):
  """Keys of the token's own chunk of `size` positions (Llama 4)."""

  size: int

  def __post_init__(self):
    _check_size(self, 'chunk')
    super().__post_init__()

  def near(self, query_BL1, key_B1S):
    return query_BL1 // self.size == key_B1S // self.size

  def keys(self, length, causal):
    return min(length, self.size)


def _check_size(kind, name):
  if not isinstance(kind.size, int) or kind.size < 1:
    raise UserError(
      f'{name}(size={kind.size!r}): must be a whole number from 1'
    )


class Attention(attention.Shell):
  """Runs a `Heads`."""

  @nn.compact
  def __call__(
    self,
    x_BLD,
    y_BSD,
    mask_BLS,
    position_BL=None,
    bias_BHLS=None,
    cached: attention.Cached | None = None,
  ):
    """Attends from `x` to `y` (the same array for self-attention).

    Args:
      x_BLD, y_BSD: queries' and keys' inputs.
      mask_BLS: bool, who may look where; with a cache, S is its length.
      position_BL: of queries and keys, to turn them by; None in
        cross-attention.
      bias_BHLS: f32, added to the products.
      cached: where keys and values of earlier calls are, and this one's go.

    Returns:
      [B, L, D] in `dtype`.
    """
    kind, D = self.kind, x_BLD.shape[-1]
    H, K, J = kind.num_heads, kind.K, kind.d_head
    # T5 does not scale the products: its queries start smaller instead.
    scale = kind.scale or (1.0 if kind.positions.relative else J**-0.5)
    shrink = 1.0 / J if kind.positions.relative else 1.0
    q_BLHJ = self._project('query', x_BLD, H, shrink)
    k_BSKJ = self._project('key', y_BSD, K)
    v_BSKJ = self._project('value', y_BSD, K)
    q_BLHJ, k_BSKJ = self._norm(q_BLHJ, k_BSKJ)
    if kind.clip:
      clip = lambda v: jnp.clip(v, -kind.clip, kind.clip)
      q_BLHJ, k_BSKJ, v_BSKJ = map(clip, (q_BLHJ, k_BSKJ, v_BSKJ))
    if position_BL is not None:
      q_BLHJ, k_BSKJ = self._place(q_BLHJ, k_BSKJ, position_BL)
    if cached:
      k_BSKJ = cached.append(self, 'key', k_BSKJ)
      v_BSKJ = cached.append(self, 'value', v_BSKJ)
    q_BLHJ, k_BSKJ, v_BSKJ = self.spread(q_BLHJ, k_BSKJ, v_BSKJ)
    sinks_H = self.zeros('sinks', (H,), ('heads',)) if kind.sinks else None
    out_BLHJ = self.attend(
      q_BLHJ, k_BSKJ, v_BSKJ, mask_BLS, scale, bias_BHLS, sinks_H
    )
    wo_HJD = self.kernel('out', (H, J, D), ('heads', None, 'embed'), H * J)
    out_BLD = projection.project('blhj,hjd->bld', out_BLHJ, wo_HJD)
    if kind.bias == 'all':
      out_BLD += self.zeros('out_bias', (D,), ('embed',)).astype(self.dtype)
    return self.whole(out_BLD)

  def _project(self, name, x_BLD, heads, scale=1.0):
    D, J, axes = x_BLD.shape[-1], self.kind.d_head, ('heads', None)
    w_DHJ = self.kernel(name, (D, heads, J), ('embed', *axes), D, scale)
    y_BLHJ = projection.project(
      'bld,dhj->blhj', x_BLD.astype(self.dtype), w_DHJ
    )
    if self.kind.bias != 'none':
      bias_HJ = self.zeros(f'{name}_bias', (heads, J), axes)
      y_BLHJ += bias_HJ.astype(self.dtype)
    return y_BLHJ

  def _norm(self, *qk):
    """Queries and keys after the norms that come before they are turned."""
    if self.kind.qk_norm in (False, 'turned'):
      return qk
    out = []
    for name, v in zip(('query_norm', 'key_norm'), qk):
      norm = norms.RMSNorm(
        self.dtype, self.norm_eps, self.norm_scale, name=name
      )
      flat = v.reshape(*v.shape[:2], -1) if self.kind.qk_norm == 'width' else v
      out.append(norm(flat).reshape(v.shape))
    return out

  def _place(self, q_BLHJ, k_BSKJ, position_BL):
    kind = self.kind
    if kind.positions.base:
      turn = kind.positions.turn
      q_BLHJ, k_BSKJ = turn(q_BLHJ, position_BL), turn(k_BSKJ, position_BL)
      if kind.qk_norm == 'turned':
        norm = norms.RMSNorm(self.dtype, self.norm_eps, scaled=False)
        q_BLHJ, k_BSKJ = norm(q_BLHJ), norm(k_BSKJ)
    if kind.temperature:
      floor, factor = kind.temperature
      far_BL = jnp.floor((position_BL + 1) / floor)
      heat_BL = 1 + factor * jnp.log1p(far_BL)
      q_BLHJ = (q_BLHJ * heat_BL[..., None, None]).astype(self.dtype)
    return q_BLHJ, k_BSKJ
