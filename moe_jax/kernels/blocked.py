"""Grouped matrix product by blocks of rows of one expert each.

For CPU. A loop runs over the blocks in use, each a dense product; an expert
with r rows has ceil(r / b) of them, so that FLOPs exceed the necessary by half
a block an expert on average, in each of the three products (values, and the
gradients of rows and of weights). Rows past the groups cost nothing, however
many the static bound allows for. Nothing is gathered or padded: a block is a
slice of the rows, and writes only those that are its own.
"""

import jax
import jax.numpy as jnp

from moe_jax.parallel import compat


def make(rows: int = 64):
  """Blocks of `rows` rows.

  Smaller ones pad less; below 64 the dense products slow down.

  Raises:
    ValueError: not a whole number from 1.
  """
  if not isinstance(rows, int) or rows < 1:
    raise ValueError(f'blocked: rows={rows!r} must be a whole number from 1')

  @jax.custom_vjp
  def matmul(x_RA, w_eAB, sizes_e):
    return _rows(x_RA, w_eAB, sizes_e, rows)

  def forward(*args):
    return matmul(*args), args

  def backward(args, dy_RB):
    x_RA, w_eAB, sizes_e = args
    dx_RA = _rows(dy_RB, w_eAB, sizes_e, rows, transpose=True)
    return dx_RA, _weights(x_RA, dy_RB, w_eAB, sizes_e, rows), None

  matmul.defvjp(forward, backward)
  return matmul


def _rows(x_RA, w_eAB, sizes_e, rows, transpose=False):
  """[R, B]; with `transpose` rows [R, B] times the transposed matrices."""
  width = w_eAB.shape[1] if transpose else w_eAB.shape[2]
  contract = (((1,), (1 if transpose else 0,)), ((), ()))

  def write(y_RB, expert, at, live_b1):
    x_bA = jax.lax.dynamic_slice_in_dim(x_RA, at, live_b1.size)
    w_AB = jax.lax.dynamic_index_in_dim(w_eAB, expert, keepdims=False)
    y_bB = jax.lax.dot_general(
      x_bA, w_AB, contract, preferred_element_type=jnp.float32
    )
    old_bB = jax.lax.dynamic_slice_in_dim(y_RB, at, live_b1.size)
    y_bB = jnp.where(live_b1, y_bB.astype(y_RB.dtype), old_bB)
    return jax.lax.dynamic_update_slice_in_dim(y_RB, y_bB, at, 0)

  empty_RB = jnp.zeros((x_RA.shape[0], width), x_RA.dtype)
  return _over_blocks(write, empty_RB, x_RA, sizes_e, rows)


def _weights(x_RA, dy_RB, w_eAB, sizes_e, rows):
  """[e, A, B], the gradient of the matrices."""

  def add(dw_eAB, expert, at, live_b1):
    part = lambda v: jnp.where(
      live_b1, jax.lax.dynamic_slice_in_dim(v, at, live_b1.size), 0
    )
    dw_AB = jax.lax.dot_general(
      part(x_RA),
      part(dy_RB),
      (((0,), (0,)), ((), ())),
      preferred_element_type=jnp.float32,
    )
    dw_AB += jax.lax.dynamic_index_in_dim(dw_eAB, expert, keepdims=False)
    return jax.lax.dynamic_update_index_in_dim(dw_eAB, dw_AB, expert, 0)

  empty_eAB = jnp.zeros(w_eAB.shape, jnp.float32)
  dw_eAB = _over_blocks(add, empty_eAB, x_RA, sizes_e, rows)
  return dw_eAB.astype(w_eAB.dtype)


def _over_blocks(body, carry, x_RA, sizes_e, rows):
  """Runs body(carry, expert, first row, which rows are the block's own)."""
  E, R = sizes_e.shape[0], x_RA.shape[0]
  b = min(rows, R)
  end_e = jnp.cumsum(sizes_e)
  blocks_e = -(-sizes_e // b)
  first_e = jnp.cumsum(blocks_e) - blocks_e
  most = (R + min(E, R) * (b - 1)) // b
  started = jnp.zeros(most, jnp.int32).at[first_e].add(1, mode='drop')
  expert_i = jnp.cumsum(started) - 1
  place_i = jnp.arange(most, dtype=jnp.int32) - first_e[expert_i]
  begin_i = (end_e - sizes_e)[expert_i] + place_i * b
  end_i = end_e[expert_i]

  def step(i, carry):
    # The last slice must not pass the last row; it then begins among rows of
    # blocks before it.
    at = jnp.minimum(begin_i[i], R - b)
    row_b1 = at + jnp.arange(b, dtype=jnp.int32)[:, None]
    live_b1 = (row_b1 >= begin_i[i]) & (row_b1 < end_i[i])
    return body(carry, expert_i[i], at, live_b1)

  carry = compat.device_varying(carry, compat.varying(x_RA))
  return jax.lax.fori_loop(0, blocks_e.sum(), step, carry)
