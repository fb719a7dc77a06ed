"""Collectives of the expert-parallel region, each in a named scope.

All take a tuple of axis names; with () they return their argument, so that a
mesh without an axis runs the same code. The scopes make profiles and compiled
programs searchable.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

# Remat policies save these by name so that backward does not run the
# collectives again.
DISPATCHED, RETURNED = 'moe_dispatched', 'moe_returned'


def all_to_all(x, axes, *, split: int, concat: int, name: str, host: int = 1):
  """Splits dimension `split` over `axes`, concatenates along `concat`.

  Args:
    x: array.
    axes: () or the one axis.
    split, concat: dimensions.
    name: of the scope, and of the result for remat policies.
    host: devices of a host, neighbours on the axis. Above 1 the exchange goes
      in two stages, inside each host and then between devices of the same place
      in theirs: the messages between hosts are `host` times fewer and larger.
      The result is the same.
  """
  if axes:
    with jax.named_scope(name):
      if host == 1:
        x = jax.lax.all_to_all(x, axes, split, concat, tiled=True)
      else:
        x = _two_stages(x, axes, split, concat, host)
  return checkpoint_name(x, name)


def _two_stages(x, axes, split, concat, host):
  (axis,) = axes
  n = jax.lax.axis_size(axis)
  if n % host:
    raise ValueError(
      f'host={host} does not divide the axis {axis!r} of size {n}'
    )
  hosts = n // host
  # Pieces to the front, by host and place of whom they are for.
  x = x.reshape(*x.shape[:split], n, -1, *x.shape[split + 1 :])
  x = jnp.moveaxis(x, split, 0)
  x = x.reshape(hosts, host, *x.shape[1:])
  inside = [[h * host + i for i in range(host)] for h in range(hosts)]
  across = [[h * host + i for h in range(hosts)] for i in range(host)]
  exchange = functools.partial(jax.lax.all_to_all, axis_name=axis, tiled=True)
  x = exchange(x, split_axis=1, concat_axis=1, axis_index_groups=inside)
  x = exchange(x, split_axis=0, concat_axis=0, axis_index_groups=across)
  # Now by host and place of whom they are from.
  x = x.reshape(n, *x.shape[2:])
  x = jnp.moveaxis(x, 0, concat)
  return x.reshape(*x.shape[:concat], -1, *x.shape[concat + 2 :])


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
