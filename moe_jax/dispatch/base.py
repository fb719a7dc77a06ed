"""Capacity, seating, and what a dispatch is."""

import abc
import fractions
import math

import jax
import jax.numpy as jnp

from moe_jax import types
from moe_jax.experts import base as experts_base
from moe_jax.parallel.axes import Axes


def capacity(factor: float | None, edges: int, E: int, T: int) -> int:
  """Rows an expert has in a group: ceil(factor * edges / E), from 1 to T.

  `edges` is T x K for token choice. The arithmetic is exact in the decimal
  number written: in floats int(280 / 3 * 1.2) is 111, not 112. None is
  dropless: T rows, since no expert sees a token twice.

  Raises:
    ValueError: a factor that is not positive.
  """
  if factor is None:
    return T
  if not factor > 0:
    raise ValueError(
      f'capacity_factor={factor} must be positive; None is dropless'
    )
  rows = math.ceil(fractions.Fraction(str(factor)) * edges / E)
  return max(1, min(rows, T))


def seat(routing: types.Routing, capacity_E: tuple[int, ...]) -> types.Seated:
  """Decides which edges of one group get a row at their expert.

  Edges queue at their expert by `priority_N`, ties in storage order; those
  past the expert's capacity are dropped. One stable sort, no [N, E] array.

  Args:
    routing: one group, N edges.
    capacity_E: rows of each expert.
  """
  E = routing.num_experts
  expert_N = routing.expert_N
  N = expert_N.shape[0]
  place_N = jnp.arange(N, dtype=jnp.int32)
  keys = [expert_N]
  if routing.priority_N is not None:
    keys.append(routing.priority_N)
  *_, order_N = jax.lax.sort((*keys, place_N), num_keys=len(keys))
  # Queue E holds those who go to nobody, behind all others.
  count = jnp.zeros(E + 1, jnp.int32).at[expert_N].add(1)
  start = jnp.cumsum(count) - count
  slot_N = jnp.zeros(N, jnp.int32)
  slot_N = slot_N.at[order_N].set(place_N - start[expert_N[order_N]])
  real_N = expert_N < E
  rows_N = jnp.append(jnp.asarray(capacity_E, jnp.int32), 0)[expert_N]
  cause_N = jnp.where(slot_N < rows_N, types.KEPT, types.CAPACITY)
  cause_N = jnp.where(real_N, cause_N, types.PADDING).astype(jnp.int32)
  if routing.renormalize_kept:
    routing = _renormalize(routing, cause_N == types.KEPT)
  return types.Seated(
    routing, cause_N, slot_N, order_N, start[:E], count[:E], capacity_E
  )


def _renormalize(routing: types.Routing, kept_N: jax.Array) -> types.Routing:
  if routing.choices is None:
    raise ValueError('renormalize_kept needs edges stored as K blocks of T')
  weight_KT = jnp.where(kept_N, routing.weight_N, 0.0)
  weight_KT = weight_KT.reshape(routing.choices, -1)
  total_T = weight_KT.sum(0)
  # A token without a kept edge has no weights to divide.
  weight_KT /= jnp.where(total_T > 0, total_T, 1.0)
  return routing.replace(weight_N=weight_KT.reshape(-1))


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


def buffer_ops(model: tuple[str, ...]) -> experts_base.Ops:
  """Operations on buffers [E, R, D].

  Args:
    model: the mesh axis that the hidden width is split over, or ().
  """

  def once(b_ED):
    first = jax.lax.axis_index(model) == 0 if model else True
    return jnp.where(first, b_ED, jnp.zeros_like(b_ED))[:, None]

  return experts_base.Ops(
    dot=lambda x, w: jnp.einsum('era,eab->erb', x, w),
    spread=lambda b_EF: b_EF[:, None],
    once=once,
  )


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
  ) -> tuple[jax.Array, jax.Array]:
    """Runs the experts on this device's groups.

    Args:
      experts: the expert kind.
      params: this device's experts [e, ...], whole over fsdp.
      x_GTD: tokens.
      seated: with leading axis G.
      axes: mesh axes.

    Returns:
      y_GTD in the dtype of x, and int32 cause_GN: the seating's causes, with
      what a receive buffer clipped as RECEIVER.
    """
