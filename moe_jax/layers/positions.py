"""Positions in attention: rotary, T5's relative ones, or none."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax import registry
from moe_jax.errors import UserError
from moe_jax.layers import frequencies


@dataclasses.dataclass(frozen=True)
class Positions:
  """How attention knows where tokens are.

  Attributes:
    base: of the angles by which queries and keys are turned; None turns none.
    relative: a `RelativeBias` is added to the products, which are not scaled.
    scaling: how angles are changed for rows longer than a model's first ones.
    interleaved: pairs are (2j, 2j + 1), not (j, j + J/2).
    share: part of a head's width that is turned, its first; the rest knows no
      positions.
  """

  base: float | None = None
  relative: bool = False
  scaling: frequencies.Scaling | None = None
  interleaved: bool = False
  share: float = 1.0

  def turned(self, width: int) -> int:
    """How many of so many numbers of a head are turned."""
    return int(width * self.share) if self.base else 0

  def turn(self, x_BLHJ: jax.Array, position_BL: jax.Array) -> jax.Array:
    """Rotary embedding (Su et al. 2021, arXiv:2104.09864, section 3.4).

    Angle of pair j is position * base^(-2j/J), unless `scaling` changes it;
    float32 inside.
    """
    J = self.turned(x_BLHJ.shape[-1])
    frequency_P = self.base ** (-np.arange(0, J, 2) / J)
    factor = 1.0
    if self.scaling:
      frequency_P = self.scaling.frequencies(frequency_P, self.base)
      factor = self.scaling.factor_on_turned
    place_BL11 = position_BL[..., None, None].astype(jnp.float32)
    angle_BL1P = place_BL11 * jnp.asarray(frequency_P, jnp.float32)
    cos, sin = (f(angle_BL1P) * factor for f in (jnp.cos, jnp.sin))
    x, rest = x_BLHJ[..., :J].astype(jnp.float32), x_BLHJ[..., J:]
    if self.interleaved:
      a, b = x[..., ::2], x[..., 1::2]
    else:
      a, b = jnp.split(x, 2, axis=-1)
    pair = a * cos - b * sin, b * cos + a * sin
    if self.interleaved:
      out = jnp.stack(pair, axis=-1).reshape(x.shape)
    else:
      out = jnp.concatenate(pair, axis=-1)
    return jnp.concatenate([out.astype(x_BLHJ.dtype), rest], axis=-1)


def rope(
  base: float = 10_000.0,
  scaling: str = '',
  interleaved: bool = False,
  share: float = 1.0,
) -> Positions:
  """Rotary; some models turn local layers faster than global ones.

  Args:
    base, interleaved, share: as of `Positions`.
    scaling: a call string of `frequencies`, "yarn(factor=4.0, ...)".
  """
  if base <= 0:
    raise UserError(f'base={base} must be positive')
  if not 0 < share <= 1:
    raise UserError(f'share={share}; valid: (0, 1]')
  made = frequencies.build(scaling) if scaling else None
  return Positions(
    base=base, scaling=made, interleaved=interleaved, share=share
  )


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
