"""Rows sorted by expert, without gaps.

An expert's rows stand together, group after group, and in a group by seat.
All places are arithmetic on the sizes of queues: nothing is sorted here.
"""

import jax
import jax.numpy as jnp

from moe_jax.kernels import permute


def segment(size_S: jax.Array, R: int) -> tuple[jax.Array, jax.Array]:
  """Which segment each of R rows is of, and its place there; int32 [R].

  Args:
    size_S: int32, sizes of segments that stand one behind the other; rows past
      their end get any segment.
    R: rows.
  """
  start_S = jnp.cumsum(size_S) - size_S
  begun_R = jnp.zeros(R, jnp.int32).at[start_S].add(1, mode='drop')
  segment_R = jnp.cumsum(begun_R) - 1
  return segment_R, jnp.arange(R, dtype=jnp.int32) - start_S[segment_R]


def regroup(size_AB: jax.Array, R: int) -> jax.Array:
  """int32 [R], which row of those grouped by A, then B, is next by B, then A.

  Past the last it is R. The inverse is that of the transposed sizes.
  """
  size_A, size_B = size_AB.reshape(-1), size_AB.T.reshape(-1)
  start_AB = (jnp.cumsum(size_A) - size_A).reshape(size_AB.shape)
  queue_R, place_R = segment(size_B, R)
  row_R = start_AB.T.reshape(-1)[queue_R] + place_R
  return jnp.where(jnp.arange(R) < size_A.sum(), row_R, R)


def rows(
  token_GN, weight_GN, row_GN, R: int, T: int, choices: int | None, weight_on
) -> permute.Rows:
  """The edges of G groups as R sorted rows; arguments as of `permute.Rows`."""
  row_N = permute.by_edge(row_GN, T, choices)
  edge_N = jnp.arange(row_N.size, dtype=jnp.int32)
  edge_R = jnp.full(R, row_N.size).at[row_N].set(edge_N, mode='drop')
  return permute.Rows(
    token_GN, weight_GN, row_GN, edge_R, T, choices, weight_on
  )


def places(expert_GN, slot_GN, count_Ge, R: int) -> jax.Array:
  """int32 [G, N], the sorted row of each edge; R where it has none.

  Args:
    expert_GN: int32, number of the expert; outside [0, e) no row is wanted.
    slot_GN: int32, the edge's seat.
    count_Ge: int32, how many seats of each queue have a row.
    R: rows.
  """
  G, e = count_Ge.shape
  count_Q = count_Ge.T.reshape(-1)
  start_eG = (jnp.cumsum(count_Q) - count_Q).reshape(e, G)
  group_G1 = jnp.arange(G, dtype=jnp.int32)[:, None]
  here_GN = (expert_GN >= 0) & (expert_GN < e)
  expert_GN = jnp.where(here_GN, expert_GN, 0)
  here_GN &= slot_GN < count_Ge[group_G1, expert_GN]
  return jnp.where(here_GN, start_eG[expert_GN, group_G1] + slot_GN, R)
