"""Collectives of the expert-parallel region, each in a named scope.

All take a tuple of axis names; with () they return their argument, so that a
mesh without an axis runs the same code. The scopes make profiles and compiled
programs searchable.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from moe_jax.errors import UserError
from moe_jax.parallel import compat

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
    raise UserError(
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
  if axes:
    with jax.named_scope(name):
      x = jax.lax.all_gather(x, axes, axis=dim, tiled=True)
  return checkpoint_name(x, name)


def gather_weights(w, axes, *, dim: int, name: str, dtype):
  """`all_gather` of weights cast to `dtype`, whose gradient sums in float32.

  The sum over devices is the transpose's reduce-scatter: 4 bytes an entry on
  the wire, and a gradient of the whole weights of 4, where `dtype` is 16 bits.
  The result has the dtype of `w`. No forward mode.
  """
  if not axes:
    return checkpoint_name(w.astype(dtype), name)
  kept = w.dtype

  @jax.custom_vjp
  def gather(w):
    with jax.named_scope(name):
      return jax.lax.all_gather(w.astype(dtype), axes, axis=dim, tiled=True)

  def scatter(_, dw):
    with jax.named_scope(f'{name}_sum'):
      dw = jax.lax.psum_scatter(
        dw.astype(jnp.float32), axes, scatter_dimension=dim, tiled=True
      )
    return (dw.astype(kept),)

  gather.defvjp(lambda w: (gather(w), None), scatter)
  # It varies before the custom_vjp, which must return such a cotangent.
  w = compat.device_varying(w, axes)
  return checkpoint_name(gather(w), name)


def reduce_scatter(x, axes, *, dim: int, name: str):
  """Sum over `axes`, of which each device keeps its part of `dim`."""
  if axes:
    with jax.named_scope(name):
      x = jax.lax.psum_scatter(x, axes, scatter_dimension=dim, tiled=True)
  return checkpoint_name(x, name)


def ragged_all_to_all(x_RD, size_SS, *, rows: int, axes, name: str):
  """Sends consecutive blocks of rows of any sizes.

  XLA has no such collective on CPU; there all rows are gathered and each device
  takes its own, which gives the same values.

  Args:
    x_RD: the blocks for devices 0, 1, ... of the axis, one behind the other.
    size_SS: int32, rows from each device to each device, the same on all of
      them; it gives every offset in both directions, so that none is sent.
    rows: of the result; must hold the sum of any column.
    axes: () or one name.
    name: of scope and checkpoint.

  Returns:
    [rows, D], the blocks from devices 0, 1, ..., zeros behind them. Where
    `axes` is () `x_RD` itself.
  """
  if not axes:
    return checkpoint_name(x_RD, name)
  R = x_RD.shape[0]

  def exchange(x, sizes, rows):
    with jax.named_scope(name):
      return jax.lax.platform_dependent(
        x,
        sizes,
        cpu=functools.partial(_gathered_exchange, rows=rows, axes=axes),
        default=functools.partial(_ragged_exchange, rows=rows, axes=axes),
      )

  # The transpose sends everything back; jax's own exchanges offsets for it.
  @jax.custom_vjp
  def there(x, sizes):
    return exchange(x, sizes, rows)

  there.defvjp(
    lambda x, sizes: (there(x, sizes), sizes),
    lambda sizes, dy: (exchange(dy, sizes.T, R), None),
  )
  return checkpoint_name(there(x_RD, size_SS), name)


def _own_blocks(size_SS, axes):
  """Sizes and offsets of this device's blocks.

  Returns:
    What it sends to each device, where that begins here and there; what it gets
    from each device, where that begins there and here. int32 [S] each.
  """
  me = index(axes)
  by_target = jnp.cumsum(size_SS, axis=1) - size_SS
  by_source = jnp.cumsum(size_SS, axis=0) - size_SS
  sent = size_SS[me], by_target[me], by_source[me]
  got = size_SS[:, me], by_target[:, me], by_source[:, me]
  return sent, got


def _ragged_exchange(x_RD, size_SS, rows, axes):
  (sent, here, there), (got, _, _) = _own_blocks(size_SS, axes)
  empty = jnp.zeros((rows, x_RD.shape[1]), x_RD.dtype)
  empty = compat.device_varying(empty, compat.varying(x_RD))
  return jax.lax.ragged_all_to_all(
    x_RD, empty, here, sent, there, got, axis_name=axes[0]
  )


def _gathered_exchange(x_RD, size_SS, rows, axes):
  _, (got, there, here) = _own_blocks(size_SS, axes)
  all_RD = jax.lax.all_gather(x_RD, axes, axis=0, tiled=True)
  row = jnp.arange(rows, dtype=jnp.int32)
  # Blocks stand without gaps: a row's source is how many of them end before it.
  source = (row[:, None] >= here + got).sum(1)
  at = source * x_RD.shape[0] + there[source] + row - here[source]
  at = jnp.where(source < got.size, at, all_RD.shape[0])
  return all_RD.at[at].get(mode='fill', fill_value=0)


def index(axes) -> jax.Array:
  """Position of this device along `axes`, the first axis slowest."""
  return jax.lax.axis_index(axes) if axes else jnp.int32(0)
