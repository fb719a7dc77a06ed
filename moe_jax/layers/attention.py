"""Attention: what its kinds share.

A kind is a record of what a layer's attention is, chosen by call string
(`attentions.py`); `heads.Attention` and `latent.LatentAttention` run them.
"""

import abc
import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from moe_jax.errors import UserError
from moe_jax.layers import boxes, positions as positions_lib
from moe_jax.parallel import rules


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind(abc.ABC):
  """What a layer's attention is.

  Attributes:
    num_heads: H.
    positions: of self-attention, or their call string.
    scale: of the products; 0 is one over the root of a key's width.
  """

  num_heads: int
  positions: positions_lib.Positions | str = 'rope'
  scale: float = 0.0

  def __post_init__(self):
    self.at_least(1, 'num_heads')
    self.at_least(0, 'scale')
    if not isinstance(self.positions, positions_lib.Positions):
      made = positions_lib.build(self.positions)
      object.__setattr__(self, 'positions', made)
    turned = self.positions.turned(self.turned_width)
    if turned % 2 or (self.positions.base and not turned):
      raise UserError(
        f'{self.WIDTH}={self.turned_width} must be even for rope positions'
      )

  def at_least(self, least: float, *names: str) -> None:
    """Raises ValueError where a field is less."""
    for name in names:
      value = getattr(self, name)
      if not isinstance(value, int | float) or value < least:
        raise UserError(f'{name}={value!r} must be at least {least}')

  @property
  @abc.abstractmethod
  def turned_width(self) -> int:
    """Of a head, what `positions` may turn."""

  @property
  @abc.abstractmethod
  def width(self) -> float:
    """Numbers that meet in a query's product with a key, and with its value.

    The mean of both, over all heads: H x J where they are equal.
    """

  @property
  @abc.abstractmethod
  def module(self) -> type[nn.Module]:
    """What runs it; takes the kind, and the fields of `Shell`."""

  @abc.abstractmethod
  def near(self, query_BL1, key_B1S) -> jax.Array | None:
    """Which keys a query sees by their positions, [B, L, S]; None: all."""

  @abc.abstractmethod
  def keys(self, length: int, causal: bool) -> int:
    """Of so many keys, how many a query may see, were it the last."""


@dataclasses.dataclass(frozen=True)
class Cached:
  """Where a call's keys go in a cache.

  Attributes:
    length: S, positions of the cache.
    slot_BL: int32, of each token; S is nowhere, as for padding.
  """

  length: int
  slot_BL: Any

  def append(self, module: nn.Module, name: str, new) -> jax.Array:
    """The cached [B, S, ...] with this call's [B, L, ...] in it."""
    shape = (new.shape[0], self.length, *new.shape[2:])
    old = module.variable('cache', name, jnp.zeros, shape, new.dtype)
    if not module.is_initializing():
      rows = jnp.arange(new.shape[0])[:, None]
      old.value = old.value.at[rows, self.slot_BL].set(new, mode='drop')
    return old.value


class Shell(nn.Module):
  """Fields of a module that runs a kind, and what it makes parameters with.

  Attributes:
    kind: what it is.
    norm_scale: whether norms of queries and keys have a gain.
    norm_eps: of these norms.
    init_scale: variance factor of the projections.
    dropout: rate on the attention weights, one draw for all queries as in T5X;
      0 in evaluation.
    causal: the mask hides all later keys; a kernel may then leave them out.
    mesh, dtype: as everywhere.
  """

  kind: Any
  norm_scale: bool = True
  norm_eps: float = 1e-6
  init_scale: float = 1.0
  dropout: float = 0.0
  causal: bool = False
  mesh: Any = None
  dtype: Any = jnp.float32

  def kernel(self, name, shape, axes, fan_in, scale=1.0):
    """A float32 matrix with variance init_scale x scale / fan_in."""
    std = (self.init_scale * scale / fan_in) ** 0.5
    # Truncation at two sigma leaves 0.8796 of the deviation.
    init = nn.initializers.truncated_normal(std / 0.87962566103423978)
    init = boxes.boxed(init, axes, self.mesh)
    return self.param(name, init, shape, jnp.float32)

  def zeros(self, name, shape, axes):
    """A float32 vector of zeros, such as a bias."""
    init = boxes.boxed(nn.initializers.zeros, axes, self.mesh)
    return self.param(name, init, shape, jnp.float32)

  def spread(self, *arrays):
    """The same, heads over the mesh's axis of theirs."""
    axes = ('batch', None, 'heads', None)
    return [rules.constrain(v, axes, self.mesh) for v in arrays]

  def whole(self, out_BLD):
    """The same, its width on every device of that axis."""
    return rules.constrain(out_BLD, ('batch', None, None), self.mesh)

  def attend(
    self, q_BLHJ, k_BSKJ, v_BSKV, mask_BLS, scale, bias_BHLS=None, sinks_H=None
  ):
    """Values by softmax of scaled products: [B, L, H, V].

    Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762). K
    divides H: each key and value serves H / K adjacent queries (grouped-query
    attention, Ainslie et al. 2023, arXiv:2305.13245).

    Args:
      mask_BLS: bool, who may look where.
      scale: of the products.
      bias_BHLS: f32, added to them.
      sinks_H: f32, a logit beside those of the keys whose weight goes nowhere.
    """
    mask_BHLS = mask_BLS[:, None]
    same = q_BLHJ.shape[-1] == v_BSKV.shape[-1]
    if self.dropout or sinks_H is not None or not same:
      return self._attend_in_full(
        q_BLHJ * scale, k_BSKJ, v_BSKV, bias_BHLS, mask_BHLS, sinks_H
      )
    if bias_BHLS is not None:
      bias_BHLS = bias_BHLS.astype(self.dtype)
    return jax.nn.dot_product_attention(
      q_BLHJ,
      k_BSKJ,
      v_BSKV,
      bias=bias_BHLS,
      mask=mask_BHLS,
      scale=scale,
      is_causal=self.causal,
      implementation=implementation(q_BLHJ, k_BSKJ, bias_BHLS),
    )

  def _attend_in_full(self, q_BLHJ, k_BSKJ, v_BSKV, bias_BHLS, mask, sinks_H):
    # jax.nn.dot_product_attention has no dropout, sinks, or values of a width
    # of their own.
    (B, L, H, _), (_, S, K, V) = q_BLHJ.shape, v_BSKV.shape
    score_BHLS = jnp.einsum(
      'blkgj,bskj->bkgls',
      q_BLHJ.reshape(B, L, K, H // K, -1),
      k_BSKJ,
      preferred_element_type=jnp.float32,
    ).reshape(B, H, L, S)
    if bias_BHLS is not None:
      score_BHLS += bias_BHLS
    score_BHLS = jnp.where(mask, score_BHLS, jnp.finfo(jnp.float32).min)
    if sinks_H is not None:
      sink_BHL1 = jnp.broadcast_to(sinks_H[:, None, None], (B, H, L, 1))
      score_BHLS = jnp.concatenate([score_BHLS, sink_BHL1], -1)
    weight_BHLS = jax.nn.softmax(score_BHLS)[..., :S]
    drop = nn.Dropout(self.dropout, broadcast_dims=(2,), deterministic=False)
    weight_BHLS = drop(weight_BHLS).astype(self.dtype)
    weight = weight_BHLS.reshape(B, K, H // K, L, S)
    out = jnp.einsum('bkgls,bskv->blkgv', weight, v_BSKV)
    return out.reshape(B, L, H, V)


def implementation(q_BLHJ, k_BSKJ, bias_BHLS) -> str:
  """'cudnn' where its fused kernel can do it, else 'xla'.

  XLA writes the scores [B, H, L, S] to memory, forward and backward; cuDNN does
  not, but wants an Ampere GPU or a later one, 16 bits, and even lengths.
  Learned biases stay with XLA: cuDNN gives few of them a gradient.
  """
  (_, L, _, J), S = q_BLHJ.shape, k_BSKJ.shape[1]
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
