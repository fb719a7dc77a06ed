"""Rows sorted by expert, without gaps, and the way there and back.

An expert's rows stand together, group after group, and in a group by seat.
All places are arithmetic on the sizes of queues: nothing is sorted here.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_jax.kernels import permute
from moe_jax.parallel import compat


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


@dataclasses.dataclass(frozen=True)
class Rows:
  """The edges of G groups as sorted rows, and back.

  Attributes:
    token_GN, weight_GN: of the edges.
    row_GN: int32, the row of each edge; R where it has none.
    R: rows; those that no edge has are zeros.
    tokens: T.
    choices, weight_on: as in Routing.
  """

  token_GN: jax.Array
  weight_GN: jax.Array
  row_GN: jax.Array
  R: int
  tokens: int
  choices: int | None
  weight_on: str

  def _flat(self):
    """Edges in the order of `permute`, and the edge and token of each row."""
    (G, N), T = self.row_GN.shape, self.tokens
    token_GN = jnp.arange(G, dtype=jnp.int32)[:, None] * T + self.token_GN

    def flat(v_GN):
      if self.choices is None:
        return v_GN.reshape(-1)
      # [G, K, T] -> [K, G * T], beside tokens in the order g * T + t.
      return v_GN.reshape(G, self.choices, T).swapaxes(0, 1).reshape(-1)

    row_N, token_N = flat(self.row_GN), flat(token_GN)
    edge_N = jnp.arange(G * N, dtype=jnp.int32)
    edge_R = jnp.full(self.R, G * N).at[row_N].set(edge_N, mode='drop')
    token_R = token_N.at[edge_R].get(mode='fill', fill_value=G * T)
    return flat(self.weight_GN), token_N, row_N, edge_R, token_R

  def collect(self, x_GTD: jax.Array) -> jax.Array:
    """Tokens to rows [R, D], weighted where weights are on the input."""
    x_ND = x_GTD.reshape(-1, x_GTD.shape[-1])
    weight_N, _, row_N, edge_R, token_R = self._flat()
    if self.choices is None:
      rows_RD = permute.look_up(x_ND, token_R, fill=True)
    else:
      row_KT = row_N.reshape(self.choices, -1)
      rows_RD = permute.to_rows(x_ND, token_R, row_KT)
    if self.weight_on == 'input':
      weight_R = permute.take(weight_N, edge_R)
      rows_RD = permute.weighted(rows_RD, weight_R)
    return rows_RD

  def combine(self, y_RD: jax.Array, dtype) -> jax.Array:
    """Rows to the weighted sums of tokens [G, T, D]; summed in float32."""
    G, T, D = self.row_GN.shape[0], self.tokens, y_RD.shape[-1]
    weight_N, token_N, row_N, edge_R, token_R = self._flat()
    if self.weight_on == 'input':
      weight_N = jnp.ones_like(weight_N)
    if self.choices is None:
      y_ND = permute.from_rows_by_edges(
        y_RD, weight_N, token_N, row_N, G * T, dtype
      )
    else:
      weight_N = compat.device_varying(weight_N, compat.varying(y_RD))
      by_choice = lambda v: v.reshape(self.choices, -1)
      y_ND = permute.from_rows(
        y_RD, by_choice(weight_N), token_R, edge_R, by_choice(row_N), dtype
      )
    return y_ND.reshape(G, T, D)


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
