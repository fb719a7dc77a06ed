"""Positions in attention: rotary, T5's relative ones, or none."""

import dataclasses

import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.errors import UserError


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


def rotate(x_BLHJ: jax.Array, position_BL: jax.Array, base: float):
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
