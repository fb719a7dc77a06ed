"""Positions in attention: rotary, T5's relative ones, or none."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.errors import UserError
from moe_jax.layers import boxes


@dataclasses.dataclass(frozen=True)
class Positions:
  """How attention knows where tokens are.

  Attributes:
    base: of the angles by which queries and keys are turned; None turns none.
    relative: a `RelativeBias` is added to the products, which are not scaled.
  """

  base: float | None = None
  relative: bool = False


def rope(base: float = 10_000.0) -> Positions:
  """Rotary; some models turn local layers faster than global ones."""
  if base <= 0:
    raise UserError(f'base={base} must be positive')
  return Positions(base=base)


def relative() -> Positions:
  """T5's; one bias for all layers of a stack."""
  return Positions(relative=True)


def none() -> Positions:
  """None: of the order a layer knows the causal mask alone.

  Kazemnejad et al. 2023, arXiv:2305.19466.
  """
  return Positions()


KINDS = {'rope': rope, 'relative': relative, 'none': none}


def build(spec: str) -> Positions:
  """`'rope(base=500000.0)'` -> positions; a ValueError lists the names."""
  return registry.call(spec, KINDS, 'positions')


def rotate(x_BLHJ: jax.Array, position_BL: jax.Array, base: float = 10_000.0):
  """Rotary position embedding (Su et al. 2021, arXiv:2104.09864, section 3.4).

  Pairs are (j, j + J/2), angle position * base^(-2j/J); float32 inside.
  """
  J = x_BLHJ.shape[-1]
  frequency = base ** (-jnp.arange(0, J, 2, dtype=jnp.float32) / J)
  angle = position_BL[..., None, None].astype(jnp.float32) * frequency
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  a, b = jnp.split(x_BLHJ.astype(jnp.float32), 2, axis=-1)
  out = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
  return out.astype(x_BLHJ.dtype)


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
