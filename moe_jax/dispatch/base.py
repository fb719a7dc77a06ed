"""What a dispatch is, and the two layouts that they share.

Buffers: each expert has C rows for each group, some of them empty. Sorted rows:
those of `kernels.sorted_rows`, without gaps.
"""

import abc

import jax
import jax.numpy as jnp

from moe_jax import types
from moe_jax.experts import base as experts_base
from moe_jax.kernels import batched, grouped, permute, sorted_rows
from moe_jax.parallel import collectives
from moe_jax.parallel.axes import Axes


def buffer_edges(seated: types.Seated) -> jax.Array:
  """int32 [E, C], the edge in each buffer row of one group; N where empty."""
  C, N = seated.rows, seated.order_N.shape[0]
  slot_C = jnp.arange(C, dtype=jnp.int32)
  place_EC = seated.start_E[:, None] + slot_C
  rows_E = jnp.minimum(seated.count_E, seated.capacity_E)
  real_EC = slot_C < rows_E[:, None]
  edge_EC = seated.order_N.at[place_EC].get(mode='clip')
  return jnp.where(real_EC, edge_EC, N)


def buffers(seated: types.Seated, T: int, C: int) -> permute.Rows:
  """The expert buffers [E, G, C, D] of G groups of T tokens, flattened.

  Args:
    seated: with leading axis G.
    T: tokens of a group.
    C: rows of an expert in a group, at least `seated.rows`.
  """
  r, E = seated.routing, seated.routing.num_experts
  G, N = r.token_N.shape
  group_G1 = jnp.arange(G, dtype=jnp.int32)[:, None]
  row_GN = (r.expert_N * G + group_G1) * C + seated.slot_N
  row_GN = jnp.where(seated.kept_N, row_GN, E * G * C)
  edge_EGC = jax.vmap(buffer_edges, out_axes=1)(seated)
  padding = ((0, 0), (0, 0), (0, C - seated.rows))
  edge_EGC = jnp.pad(edge_EGC, padding, constant_values=N)
  number_EGC = permute.number(group_G1, edge_EGC, G, N, T, r.choices)
  edge_R = jnp.where(edge_EGC == N, G * N, number_EGC).reshape(-1)
  return permute.Rows(
    r.token_N, r.weight_N, row_GN, edge_R, T, r.choices, r.weight_on
  )


def first_alone(b: jax.Array, model: tuple[str, ...]) -> jax.Array:
  """b on the first device of the axis `model`, zeros on its others."""
  if not model:
    return b
  return jnp.where(jax.lax.axis_index(model) == 0, b, jnp.zeros_like(b))


def buffer_ops(
  R: int, model: tuple[str, ...], drop=None, E: int = 1
) -> experts_base.Ops:
  """Operations on buffers [E, R, D].

  Args:
    R: rows of an expert.
    model: the mesh axis that the hidden width is split over, or ().
    drop: from `dropper`; None drops nothing.
    E: experts that a vector of all of them is laid on.
  """

  def spread(b):
    own = len(b) if b.ndim == 2 else E
    return permute.laid(b[..., None, :], (own, R, b.shape[-1]))

  return experts_base.Ops(
    dot=lambda x, w: (batched.product if w.ndim == 3 else jnp.dot)(x, w),
    spread=spread,
    once=lambda b: spread(first_alone(b, model)),
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
    return _dropped(hidden, keep, rate, axes)

  return drop


def _dropped(hidden, keep, rate, axes):
  """Dropout, given what to keep of the whole width, or of every unit."""
  if axes.model and keep.shape[-1] > 1:
    own = hidden.shape[-1]
    at = jax.lax.axis_index(axes.model) * own
    keep = jax.lax.dynamic_slice_in_dim(keep, at, own, axis=-1)
  return jnp.where(keep, hidden / (1 - rate), 0).astype(hidden.dtype)


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


def local_experts(axes: Axes, e: int) -> jax.Array:
  """int32 [e], global numbers of this device's e experts."""
  return collectives.index(axes.expert) * e + jnp.arange(e, dtype=jnp.int32)


def exchanged_ops(key, e: int, axes: Axes, G: int, C: int, seats=None):
  """`buffer_ops` for the rows [e, n * G * C, D] that an all-to-all brought.

  Args:
    key, axes: as in `Dispatch`.
    e: this device's experts.
    G, C: groups of a device, rows of an expert in a group.
    seats: the range of an expert's rows that are there; None is all C.
  """
  group = exchanged_groups(axes, G)[:, None]
  seat = jnp.asarray(seats or range(C), jnp.int32)
  rows_R = (group * C + seat).reshape(-1)
  drop = dropper(key, local_experts(axes, e), rows_R, axes)
  return buffer_ops(rows_R.size, axes.model, drop, e)


def kept_counts(seated: types.Seated) -> jax.Array:
  """int32 [G, E], the rows of each expert in each group."""
  return jnp.minimum(seated.count_E, seated.capacity_E)


def most_rows(seated: types.Seated, G: int, e: int) -> int:
  """R, the most rows that G groups can have at e experts together."""
  return G * min(seated.order_N.shape[-1], e * seated.rows)


def run_sorted(
  experts, params, rows_RD, count_Ge, seated, axes: Axes, key, matmul: str
):
  """The experts on sorted rows [R, D] of the groups of an expert axis.

  Args:
    experts, params, axes, key: as in `Dispatch`.
    rows_RD: sorted by local expert, group, seat; rows past the last may hold
      anything.
    count_Ge: int32, rows of each group (in the order of `exchanged_groups`) at
      each local expert.
    seated: of this device's groups.
    matmul: call string of `kernels.grouped`.
  """
  R, (H, e) = rows_RD.shape[0], count_Ge.shape
  product, size_e = grouped.build(matmul), count_Ge.sum(0)
  drop = None
  if key is not None:
    queue_R, slot_R = sorted_rows.segment(count_Ge.T.reshape(-1), R)
    group_H = exchanged_groups(axes, H // axes.size(axes.expert))
    expert_R = local_experts(axes, e)[queue_R // H]
    row_R = group_H[queue_R % H] * seated.rows + slot_R
    drop = sorted_dropper(key, expert_R, row_R, axes)
  ops = sorted_ops(product, size_e, R, axes.model, drop)
  return experts(params, rows_RD, ops)


def sorted_ops(matmul, size_e, R: int, model: tuple[str, ...], drop=None):
  """Operations on sorted rows [R, D].

  Args:
    matmul: from `kernels.grouped`.
    size_e: int32, rows of each expert.
    R: rows, those past the experts' included.
    model, drop: as in `buffer_ops`.
  """

  # What all experts share belongs to one group of all their rows: a product
  # that leaves the rows past them out, which may hold anything.
  def dot(x_RA, w):
    if w.ndim == 2:
      return matmul(x_RA, w[None], size_e.sum(keepdims=True))
    return matmul(x_RA, w, size_e)

  # A product with ones, because its gradient is then a sum over an expert's
  # rows in float32, and not a scatter-add; rows of no expert get zeros.
  def spread(b):
    return dot(jnp.ones((R, 1), b.dtype), b[..., None, :])

  return experts_base.Ops(
    dot=dot,
    spread=spread,
    once=lambda b: spread(first_alone(b, model)),
    drop=drop or (lambda hidden, rate, mask: hidden),
  )


def sorted_dropper(key, expert_R: jax.Array, row_R: jax.Array, axes: Axes):
  """`dropper` for sorted rows [R, F / model]: the same masks.

  Args:
    key: of the layer and step.
    expert_R, row_R: int32, global number of the expert, and the number that
      `dropper` takes, of each row.
    axes: mesh axes.
  """

  def drop(hidden, rate, mask):
    if not rate:
      return hidden
    wide = hidden.shape[-1] * axes.size(axes.model)

    def draw(expert, row):
      k = jax.random.fold_in(key, expert)
      if mask == 'row':
        k = jax.random.fold_in(k, row)
      width = 1 if mask == 'expert' else wide
      return jax.random.bernoulli(k, 1 - rate, (width,))

    return _dropped(hidden, jax.vmap(draw)(expert_R, row_R), rate, axes)

  return drop


def gather_reduce(
  experts, params, x_GTD, seated: types.Seated, axes: Axes, key, matmul: str
) -> jax.Array:
  """The path of the dispatch of that name, also a fallback of others.

  Arguments as in `Dispatch`, `matmul` as in `run_sorted`; returns y_GTD.
  """
  r, T = seated.routing, x_GTD.shape[1]
  N, E = r.expert_N.shape[-1], r.num_experts
  e = E // axes.size(axes.expert)

  def gather(v):
    name = collectives.DISPATCHED
    return collectives.all_gather(v, axes.expert, dim=0, name=name)

  x_HTD, weight_HN = gather(x_GTD), gather(r.weight_N)
  edges = r.expert_N, seated.slot_N, r.token_N, kept_counts(seated)
  edges = gather(jnp.concatenate(edges, axis=1))
  expert_HN, slot_HN, token_HN, count_HE = jnp.split(
    edges, (N, 2 * N, 3 * N), axis=1
  )
  first = collectives.index(axes.expert) * e
  count_He = jax.lax.dynamic_slice_in_dim(count_HE, first, e, axis=1)
  R = most_rows(seated, x_HTD.shape[0], e)
  row_HN = sorted_rows.places(expert_HN - first, slot_HN, count_He, R)
  rows = sorted_rows.rows(
    token_HN, weight_HN, row_HN, R, T, r.choices, r.weight_on
  )
  y_RD = run_sorted(
    experts, params, rows.collect(x_HTD), count_He, seated, axes, key, matmul
  )
  y_HTD = rows.combine(y_RD, jnp.float32)
  y_GTD = collectives.reduce_scatter(
    y_HTD, axes.expert, dim=0, name=collectives.RETURNED
  )
  return y_GTD.astype(x_GTD.dtype)


class Dispatch(abc.ABC):
  """Takes rows to their experts and back, inside the region.

  Concrete dispatches are frozen dataclasses. The result is a partial sum over
  the `model` axis where that splits the experts' hidden width.

  Attributes:
    random: whether training draws; it then gets a key, dropout or not.
    padded: whether it holds more rows than there are assignments, where none
      may be dropped.
    routing: the kind of routing that it can take.
  """

  random: bool = False
  padded: bool = False
  routing: type[types.Routing] = types.Routing

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
      key: of the experts' dropout and of what is `random`, the same on all
        devices; None is without.

    Returns:
      y_GTD in the dtype of x, and int32 cause_GN: the seating's causes, with
      what a receive buffer clipped as RECEIVER.
    """
