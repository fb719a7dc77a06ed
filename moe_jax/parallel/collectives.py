"""Collectives of the expert-parallel region, each in a named scope.

All take a tuple of axis names; with () they return their argument, so that a
mesh without an axis runs the same code. The scopes make profiles and compiled
programs searchable.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

# Remat policies save these by name so that backward does not run the
# collectives again.
DISPATCHED, RETURNED = 'moe_dispatched', 'moe_returned'


def all_to_all(x, axes, *, split: int, concat: int, name: str):
  """Splits dimension `split` over `axes`, concatenates along `concat`."""
  if axes:
    with jax.named_scope(name):
      x = jax.lax.all_to_all(x, axes, split, concat, tiled=True)
  return checkpoint_name(x, name)


def psum(x, axes, *, name: str):
  """Sum over `axes` of every leaf of `x`."""
  if not axes:
    return x
  with jax.named_scope(name):
    return jax.tree.map(lambda v: jax.lax.psum(v, axes), x)


def all_gather(x, axes, *, dim: int, name: str):
  """Concatenates the shards along `dim`; the transpose is a reduce-scatter."""
  if not axes:
    return x
  with jax.named_scope(name):
    return jax.lax.all_gather(x, axes, axis=dim, tiled=True)


def index(axes) -> jax.Array:
  """Position of this device along `axes`, the first axis slowest."""
  return jax.lax.axis_index(axes) if axes else jnp.int32(0)
