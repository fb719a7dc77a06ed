"""What a dispatch is, and the buffers that most share."""

import abc

import jax
import jax.numpy as jnp

from moe_jax import types
from moe_jax.experts import base as experts_base
from moe_jax.parallel import collectives
from moe_jax.parallel.axes import Axes


def buffer_edges(seated: types.Seated) -> jax.Array:
  """int32 [E, C], the edge in each buffer row of one group; N where empty."""
  C, N = seated.rows, seated.order_N.shape[0]
  slot_C = jnp.arange(C, dtype=jnp.int32)
  place_EC = seated.start_E[:, None] + slot_C
  rows_E = jnp.minimum(
    seated.count_E, jnp.asarray(seated.capacity_E, jnp.int32)
  )
  real_EC = slot_C < rows_E[:, None]
  edge_EC = seated.order_N.at[place_EC].get(mode='clip')
  return jnp.where(real_EC, edge_EC, N)


def buffer_ops(model: tuple[str, ...], drop=None) -> experts_base.Ops:
  """Operations on buffers [E, R, D].

  Args:
    model: the mesh axis that the hidden width is split over, or ().
    drop: from `dropper`; None drops nothing.
  """

  def once(b_ED):
    first = jax.lax.axis_index(model) == 0 if model else True
    return jnp.where(first, b_ED, jnp.zeros_like(b_ED))[:, None]

  return experts_base.Ops(
    dot=lambda x, w: jnp.einsum('era,eab->erb', x, w),
    spread=lambda b_EF: b_EF[:, None],
    once=once,
    drop=drop or (lambda hidden, rate, mask: hidden),
  )


def dropper(key, expert_e: jax.Array, row_R: jax.Array, axes: Axes):
  """`Ops.drop` for buffers [e, R, F / model], or None without a key.

  The keys follow expert and seat, and every device of the `model` axis draws
  the whole width and takes its part: masks do not depend on the mesh.

  Args:
    key: of the layer and step; None where nothing is dropped.
    expert_e: int32, global numbers of the experts.
    row_R: int32, a number for each row, its group's times C plus its seat.
    axes: mesh axes.
  """
  if key is None:
    return None

  def drop(hidden, rate, mask):
    if not rate:
      return hidden
    wide = hidden.shape[-1] * axes.size(axes.model)
    draw = lambda k, *shape: jax.random.bernoulli(k, 1 - rate, shape)
    keys_e = jax.vmap(lambda e: jax.random.fold_in(key, e))(expert_e)
    if mask == 'expert':
      keep = jax.vmap(lambda k: draw(k, 1, 1))(keys_e)
    elif mask == 'shared':
      keep = jax.vmap(lambda k: draw(k, 1, wide))(keys_e)
    else:
      row = lambda k, r: draw(jax.random.fold_in(k, r), wide)
      keep = jax.vmap(lambda k: jax.vmap(lambda r: row(k, r))(row_R))(keys_e)
    if axes.model and mask != 'expert':
      own = hidden.shape[-1]
      at = jax.lax.axis_index(axes.model) * own
      keep = jax.lax.dynamic_slice_in_dim(keep, at, own, axis=-1)
    return jnp.where(keep, hidden / (1 - rate), 0).astype(hidden.dtype)

  return drop


def local_groups(axes: Axes, G: int) -> jax.Array:
  """int32 [G], global numbers of this device's groups."""
  return collectives.index(axes.batch) * G + jnp.arange(G, dtype=jnp.int32)


def exchanged_groups(axes: Axes, G: int) -> jax.Array:
  """int32 [n * G], global numbers of the groups of this device's expert axis.

  In the order in which an all-to-all over that axis concatenates them.
  """
  n = axes.size(axes.expert)
  others = tuple(a for a in axes.batch if a not in axes.expert)
  first = collectives.index(others) * n * G
  return first + jnp.arange(n * G, dtype=jnp.int32)


def local_experts(axes: Axes, params: experts_base.Params) -> jax.Array:
  """int32 [e], global numbers of this device's experts."""
  e = jax.tree.leaves(params)[0].shape[0]
  return collectives.index(axes.expert) * e + jnp.arange(e, dtype=jnp.int32)


def exchanged_ops(key, params, axes: Axes, G: int, C: int, seats=None):
  """`buffer_ops` for the rows [e, n * G * C, D] that an all-to-all brought.

  Args:
    key, axes: as in `Dispatch`.
    params: this device's experts.
    G, C: groups of a device, rows of an expert in a group.
    seats: the range of an expert's rows that are there; None is all C.
  """
  group = exchanged_groups(axes, G)[:, None]
  seat = jnp.asarray(seats or range(C), jnp.int32)
  rows_R = (group * C + seat).reshape(-1)
  drop = dropper(key, local_experts(axes, params), rows_R, axes)
  return buffer_ops(axes.model, drop)


class Dispatch(abc.ABC):
  """Takes rows to their experts and back, inside the region.

  Concrete dispatches are frozen dataclasses. The result is a partial sum over
  the `model` axis where that splits the experts' hidden width.
  """

  @abc.abstractmethod
  def __call__(
    self,
    experts: experts_base.Experts,
    params: experts_base.Params,
    x_GTD: jax.Array,
    seated: types.Seated,
    axes: Axes,
    key: jax.Array | None,
  ) -> tuple[jax.Array, jax.Array]:
    """Runs the experts on this device's groups.

    Args:
      experts: the expert kind.
      params: this device's experts [e, ...], whole over fsdp.
      x_GTD: tokens.
      seated: with leading axis G.
      axes: mesh axes.
      key: of the experts' dropout, the same on all devices; None is without.

    Returns:
      y_GTD in the dtype of x, and int32 cause_GN: the seating's causes, with
      what a receive buffer clipped as RECEIVER.
    """
