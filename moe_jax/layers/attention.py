"""Multi-head attention: self, causal self with a cache, and cross.

A kind is a record of what a layer's attention is; `Attention` is the module
that runs it.
"""

import abc
import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.errors import UserError
from moe_jax.kernels import projection
from moe_jax.layers import boxes, norms, positions as positions_lib
from moe_jax.parallel import rules


def implementation(q_BLHJ, k_BSHJ, bias_BHLS) -> str:
  """'cudnn' where its fused kernel can do it, else 'xla'.

  XLA writes the scores [B, H, L, S] to memory, forward and backward; cuDNN does
  not, but wants an Ampere GPU or a later one, 16 bits, and even lengths.
  Learned biases stay with XLA: cuDNN gives few of them a gradient.
  """
  (_, L, _, J), S = q_BLHJ.shape, k_BSHJ.shape[1]
  fits = J % 8 == 0 and J <= 128 and L == S and L % 2 == 0
  sixteen = q_BLHJ.dtype in (jnp.bfloat16, jnp.float16)
  if bias_BHLS is None and fits and sixteen and _has_cudnn():
    return 'cudnn'
  return 'xla'


@functools.cache
def _has_cudnn() -> bool:
  """jax for CUDA needs cuDNN anyway; the kernel wants tensor cores."""
  device = jax.devices()[0]
  cuda = 'cuda' in getattr(device.client, 'platform_version', '')
  return cuda and float(device.compute_capability) >= 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind(abc.ABC):
  """What a layer's attention is.

  Attributes:
    num_heads, d_head: H, J.
    positions: of self-attention, or their call string.
    qk_norm: RMS-normalise queries and keys a head, before they are turned.
  """

  num_heads: int
  d_head: int
  positions: positions_lib.Positions | str = 'rope'
  qk_norm: bool = False

  def __post_init__(self):
    for name in ('num_heads', 'd_head'):
      if getattr(self, name) < 1:
        raise UserError(f'{name}={getattr(self, name)} must be at least 1')
    if not isinstance(self.positions, positions_lib.Positions):
      made = positions_lib.build(self.positions)
      object.__setattr__(self, 'positions', made)
    if self.positions.base and self.d_head % 2:
      raise UserError(f'd_head={self.d_head} must be even for rope positions')

  @abc.abstractmethod
  def near(self, query_BL1, key_B1S) -> jax.Array | None:
    """Which keys a query sees by their positions, [B, L, S]; None: all."""

  @abc.abstractmethod
  def keys(self, length: int, causal: bool) -> int:
    """Of so many keys, how many a query may see, were it the last."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Full(Kind):
  """All of the token's segment, or what of it is not later."""

  def near(self, query_BL1, key_B1S):
    return None

  def keys(self, length, causal):
    return length


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window(Kind):
  """Keys less than `size` away (Beltagy et al. 2020, arXiv:2004.05150).

  Of a causal stack the token itself and size - 1 before it. They are masked:
  no product is saved.
  """

  size: int

  def __post_init__(self):
    if not isinstance(self.size, int) or self.size < 1:
      what = f'window(size={self.size!r})'
      raise UserError(f'{what}: must be a whole number from 1')
    super().__post_init__()

  def near(self, query_BL1, key_B1S):
    return jnp.abs(query_BL1 - key_B1S) < self.size

  def keys(self, length, causal):
    return min(length, self.size if causal else 2 * self.size - 1)


KINDS = {'full': Full, 'window': Window}


def build(spec: str, **sizes: Any) -> Kind:
  """A kind from its call string, `'window(size=128)'`.

  Args:
    spec: the call string.
    **sizes: fields of a Kind that the call string need not set.

  Raises:
    ValueError: an unknown name or argument; the message lists the valid ones.
  """
  made = {k: functools.partial(v, **sizes) for k, v in KINDS.items()}
  return registry.call(spec, made, 'attention')


class Attention(nn.Module):
  """Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762).

  Attributes:
    kind: what it is.
    norm_scale: whether norms of queries and keys have a gain.
    init_scale: variance factor of the projections.
    dropout: rate on the attention weights, one draw for all queries as in T5X;
      0 in evaluation.
    causal: the mask hides all later keys; a kernel may then leave them out.
    cache_length: S > 0 keeps keys and values of that many positions in the
      'cache' collection and appends this call's.
    mesh, dtype: as everywhere.
  """

  kind: Kind
  norm_scale: bool = True
  init_scale: float = 1.0
  dropout: float = 0.0
  causal: bool = False
  cache_length: int = 0
  mesh: Any = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BLD, y_BSD, mask_BLS, position_BL=None, bias_BHLS=None):
    """Attends from `x` to `y` (the same array for self-attention).

    Args:
      x_BLD, y_BSD: queries' and keys' inputs.
      mask_BLS: bool, who may look where; with a cache, S is its length.
      position_BL: of queries and keys, to turn them by; None in
        cross-attention.
      bias_BHLS: f32, added to the products.

    Returns:
      [B, L, D] in `dtype`.
    """
    D, kind = x_BLD.shape[-1], self.kind
    H, J, base = kind.num_heads, kind.d_head, kind.positions.base
    # T5 does not scale the products: its queries start smaller instead.
    scaled = not kind.positions.relative
    shrink = 1.0 if scaled else 1.0 / J
    project = lambda name, v, scale=1.0: projection.project(
      'bld,dhj->blhj',
      v.astype(self.dtype),
      self._kernel(name, (D, H, J), ('embed', 'heads', None), D, scale),
    )
    q_BLHJ = project('query', x_BLD, shrink)
    k_BSHJ, v_BSHJ = project('key', y_BSD), project('value', y_BSD)
    if kind.qk_norm:
      norm = functools.partial(
        norms.RMSNorm, self.dtype, scaled=self.norm_scale
      )
      q_BLHJ = norm(name='query_norm')(q_BLHJ)
      k_BSHJ = norm(name='key_norm')(k_BSHJ)
    if base and position_BL is not None:
      q_BLHJ = positions_lib.rotate(q_BLHJ, position_BL, base)
      k_BSHJ = positions_lib.rotate(k_BSHJ, position_BL, base)
    if self.cache_length:
      k_BSHJ, v_BSHJ = self._append(k_BSHJ, v_BSHJ)
    heads = ('batch', None, 'heads', None)
    q_BLHJ, k_BSHJ, v_BSHJ = (
      rules.constrain(v, heads, self.mesh) for v in (q_BLHJ, k_BSHJ, v_BSHJ)
    )
    bias_BHLS = None if bias_BHLS is None else bias_BHLS.astype(self.dtype)
    scale = J**-0.5 if scaled else 1.0
    if self.dropout:
      out_BLHJ = self._with_dropout(
        q_BLHJ * scale, k_BSHJ, v_BSHJ, bias_BHLS, mask_BLS[:, None]
      )
    else:
      out_BLHJ = jax.nn.dot_product_attention(
        q_BLHJ,
        k_BSHJ,
        v_BSHJ,
        bias=bias_BHLS,
        mask=mask_BLS[:, None],
        scale=scale,
        is_causal=self.causal,
        implementation=implementation(q_BLHJ, k_BSHJ, bias_BHLS),
      )
    wo_HJD = self._kernel('out', (H, J, D), ('heads', None, 'embed'), H * J)
    out_BLD = projection.project('blhj,hjd->bld', out_BLHJ, wo_HJD)
    return rules.constrain(out_BLD, ('batch', None, None), self.mesh)

  def _with_dropout(self, q_BLHJ, k_BSHJ, v_BSHJ, bias_BHLS, mask_BHLS):
    # jax.nn.dot_product_attention has none.
    score_BHLS = jnp.einsum(
      'blhj,bshj->bhls', q_BLHJ, k_BSHJ, preferred_element_type=jnp.float32
    )
    if bias_BHLS is not None:
      score_BHLS += bias_BHLS
    score_BHLS = jnp.where(mask_BHLS, score_BHLS, jnp.finfo(jnp.float32).min)
    weight_BHLS = jax.nn.softmax(score_BHLS)
    drop = nn.Dropout(self.dropout, broadcast_dims=(2,), deterministic=False)
    weight_BHLS = drop(weight_BHLS).astype(self.dtype)
    return jnp.einsum('bhls,bshj->blhj', weight_BHLS, v_BSHJ)

  def _kernel(self, name, shape, axes, fan_in, scale=1.0):
    std = (self.init_scale * scale / fan_in) ** 0.5
    # Truncation at two sigma leaves 0.8796 of the deviation.
    init = nn.initializers.truncated_normal(std / 0.87962566103423978)
    init = boxes.boxed(init, axes, self.mesh)
    return self.param(name, init, shape, jnp.float32)

  def _append(self, k_BLHJ, v_BLHJ):
    B, L, H, J = k_BLHJ.shape
    zeros = lambda: jnp.zeros((B, self.cache_length, H, J), self.dtype)
    key = self.variable('cache', 'key', zeros)
    value = self.variable('cache', 'value', zeros)
    end = self.variable('cache', 'end', lambda: jnp.int32(0))
    if not self.is_initializing():
      at = (0, end.value, 0, 0)
      key.value = jax.lax.dynamic_update_slice(key.value, k_BLHJ, at)
      value.value = jax.lax.dynamic_update_slice(value.value, v_BLHJ, at)
      end.value += L
    return key.value, value.value
