"""Rows to expert buffers and back, by gathers in both directions.

The transpose of a gather is a scatter-add, which is slow on every platform.
Where the edges are K blocks of T in token order, both directions of both
permutations are gathers: each row of a buffer belongs to one edge, and each
token has K edges at known places. Edges in any other order use the scatter-add
that differentiation gives.

All indices address flattened arrays: token `g * T + t`, row of the buffers.
An index past the end reads zeros.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from moe_jax.parallel import compat


def laid(b: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """b broadcast to `shape`; the transpose sums in float32."""
  return jnp.broadcast_to(b.astype(jnp.float32), shape).astype(b.dtype)


def weighted(rows_RD: jax.Array, weight_R: jax.Array) -> jax.Array:
  """Rows times float32 weights, whose gradients are sums in float32."""
  return (rows_RD * weight_R[:, None]).astype(rows_RD.dtype)


def look_up(table, index: jax.Array, dtype=None, *, fill: bool = False):
  """table[index] in `dtype`; the transpose adds up in float32.

  In 16 bits it would stop counting at 256: a row that a thousand others look up
  would have a gradient four times too small. No forward mode.

  Args:
    table: [N, ...].
    index: int32, any shape.
    dtype: of the result; None is the table's.
    fill: an index past the end reads zeros; else there may be none.
  """
  shape, kept = table.shape, table.dtype

  @jax.custom_vjp
  def get(table, index):
    table = table.astype(dtype or kept)
    return take(table, index) if fill else table.at[index].get(mode='clip')

  def add_up(index, dy):
    total = jnp.zeros(shape, jnp.float32)
    total = compat.device_varying(total, compat.varying(dy))
    total = total.at[index].add(dy.astype(jnp.float32), mode='drop')
    return total.astype(kept), None

  get.defvjp(lambda table, index: (get(table, index), index), add_up)
  axes = compat.varying(table) | compat.varying(index)
  return get(*(compat.device_varying(v, axes) for v in (table, index)))


def take(x_ND: jax.Array, index: jax.Array) -> jax.Array:
  """x[index], zeros where the index is past the end."""
  if index.size <= x_ND.shape[0]:
    return x_ND.at[index].get(mode='fill', fill_value=0)
  # A row of zeros costs a copy of x, filling a second pass over the result.
  padding = ((0, 1),) + ((0, 0),) * (x_ND.ndim - 1)
  return jnp.pad(x_ND, padding).at[index].get(mode='clip')


@jax.custom_vjp
def reorder(x_RD: jax.Array, index_R: jax.Array, inverse_R: jax.Array):
  """take(x, index), whose transpose is take(dy, inverse)."""
  del inverse_R
  return take(x_RD, index_R)


reorder.defvjp(
  lambda x, index, inverse: (reorder(x, index, inverse), inverse),
  lambda inverse, dy: (take(dy, inverse), None, None),
)


@jax.custom_vjp
def to_rows(x_TD: jax.Array, token_R: jax.Array, row_KT: jax.Array):
  """Buffer rows of tokens: [T, D] -> [R, D].

  Args:
    x_TD: tokens.
    token_R: int32, the token of each row; T where the row is empty (zeros).
    row_KT: int32, the row of each token's K edges; R where dropped. The
      transpose reads it; it must be the inverse of `token_R`.
  """
  del row_KT
  return take(x_TD, token_R)


def _to_rows_fwd(x_TD, token_R, row_KT):
  return to_rows(x_TD, token_R, row_KT), row_KT


def _to_rows_bwd(row_KT, dy_RD):
  dx_TD = _sum_of_rows(dy_RD, row_KT)
  return dx_TD.astype(dy_RD.dtype), None, None


def _sum_of_rows(y_RD, row_KT, weight_KT=None):
  """f32 [T, D], the (weighted) sum of each token's rows.

  K gathers and sums in one loop over tokens: a sum over the first axis of one
  gather [K, T, D] writes that array first, and takes 5 to 10 times as long on
  CPU.
  """
  total_TD = 0.0
  for k, row_T in enumerate(row_KT):
    y_TD = take(y_RD, row_T).astype(jnp.float32)
    total_TD += y_TD if weight_KT is None else weight_KT[k][:, None] * y_TD
  return total_TD


to_rows.defvjp(_to_rows_fwd, _to_rows_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def from_rows(y_RD, weight_KT, token_R, edge_R, row_KT, dtype=None):
  """Weighted sum of each token's K rows: [R, D] -> [T, D].

  Products and the sum over K are float32.

  Args:
    y_RD: rows from the experts.
    weight_KT: f32 combine weights.
    token_R, edge_R: int32, the token and the edge (k * T + t) of each row; past
      the end where the row is empty.
    row_KT: int32, the row of each edge; R where dropped.
    dtype: of the result; None is the rows'.
  """
  del token_R, edge_R
  y_TD = _sum_of_rows(y_RD, row_KT, weight_KT)
  return y_TD.astype(dtype or y_RD.dtype)


def _from_rows_fwd(y_RD, weight_KT, token_R, edge_R, row_KT, dtype):
  out = from_rows(y_RD, weight_KT, token_R, edge_R, row_KT, dtype)
  return out, (y_RD, weight_KT, token_R, edge_R, row_KT)


def _from_rows_bwd(dtype, saved, dy_TD):
  del dtype
  y_RD, weight_KT, token_R, edge_R, row_KT = saved
  weight_R = take(weight_KT.reshape(-1), edge_R)
  dy_RD = take(dy_TD, token_R).astype(jnp.float32)
  dw_R = (y_RD.astype(jnp.float32) * dy_RD).sum(-1)
  dy_RD = (dy_RD * weight_R[:, None]).astype(y_RD.dtype)
  return dy_RD, take(dw_R, row_KT), None, None, None


from_rows.defvjp(_from_rows_fwd, _from_rows_bwd)


def from_rows_by_edges(
  y_RD, weight_N, token_N, row_N, T: int, dtype=None
) -> jax.Array:
  """`from_rows` for edges in any order: a scatter-add over tokens."""
  y_ND = take(y_RD, row_N).astype(jnp.float32) * weight_N[:, None]
  out = jnp.zeros((T, y_RD.shape[-1]), jnp.float32).at[token_N].add(y_ND)
  return out.astype(dtype or y_RD.dtype)


def by_edge(v_GN: jax.Array, T: int, choices: int | None) -> jax.Array:
  """[G N], in the order that edges of G groups are numbered in.

  In storage order; K blocks of T as [K, G, T], beside tokens in the order
  g * T + t.
  """
  if choices is not None:
    v_GN = v_GN.reshape(-1, choices, T).swapaxes(0, 1)
  return v_GN.reshape(-1)


def number(group, edge, G: int, N: int, T: int, choices: int | None):
  """The place in `by_edge` of a group's edge."""
  if choices is None:
    return group * N + edge
  return edge // T * (G * T) + group * T + edge % T


@dataclasses.dataclass(frozen=True)
class Rows:
  """The edges of G groups as rows, and back.

  Attributes:
    token_GN, weight_GN: of the edges.
    row_GN: int32, the row of each edge; R where it has none.
    edge_R: int32, the `number` of each row's edge; G * N where it has none, and
      is zeros.
    tokens: T.
    choices, weight_on: as in Routing.
  """

  token_GN: jax.Array
  weight_GN: jax.Array
  row_GN: jax.Array
  edge_R: jax.Array
  tokens: int
  choices: int | None
  weight_on: str

  def _by_edge(self, v_GN):
    return by_edge(v_GN, self.tokens, self.choices)

  def _tokens(self):
    """The token of each edge, where they are in no order, and of each row."""
    (G, N), T = self.row_GN.shape, self.tokens
    if self.choices is not None:
      token_R = jnp.where(self.edge_R == G * N, G * T, self.edge_R % (G * T))
      return None, token_R
    token_GN = jnp.arange(G, dtype=jnp.int32)[:, None] * T + self.token_GN
    token_N = token_GN.reshape(-1)
    fill = {'mode': 'fill', 'fill_value': G * T}
    return token_N, token_N.at[self.edge_R].get(**fill)

  def collect(self, x_GTD: jax.Array) -> jax.Array:
    """Tokens to rows [R, D], weighted where weights are on the input."""
    x_ND = x_GTD.reshape(-1, x_GTD.shape[-1])
    _, token_R = self._tokens()
    if self.choices is None:
      rows_RD = look_up(x_ND, token_R, fill=True)
    else:
      row_KT = self._by_edge(self.row_GN).reshape(self.choices, -1)
      rows_RD = to_rows(x_ND, token_R, row_KT)
    if self.weight_on == 'input':
      weight_R = take(self._by_edge(self.weight_GN), self.edge_R)
      rows_RD = weighted(rows_RD, weight_R)
    return rows_RD

  def combine(self, y_RD: jax.Array, dtype) -> jax.Array:
    """Rows to the weighted sums of tokens [G, T, D]; summed in float32."""
    G, T, D = self.row_GN.shape[0], self.tokens, y_RD.shape[-1]
    token_N, token_R = self._tokens()
    weight_N, row_N = map(self._by_edge, (self.weight_GN, self.row_GN))
    if self.weight_on == 'input':
      weight_N = jnp.ones_like(weight_N)
    if self.choices is None:
      y_ND = from_rows_by_edges(y_RD, weight_N, token_N, row_N, G * T, dtype)
    else:
      weight_N = compat.device_varying(weight_N, compat.varying(y_RD))
      weight_KT, row_KT = (
        v.reshape(self.choices, -1) for v in (weight_N, row_N)
      )
      y_ND = from_rows(y_RD, weight_KT, token_R, self.edge_R, row_KT, dtype)
    return y_ND.reshape(G, T, D)
