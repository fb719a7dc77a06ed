"""Grouped matrix product in Pallas, compiled by Triton.

For NVIDIA GPUs with bfloat16 matrix units. A program computes one tile of a
result, of one expert; which rows it has is found on the device, so that the
number of tiles depends on the rows and not on experts times rows. Rows past the
groups are tiles of zeros. The gradient of the matrices is one sum over an
expert's rows for each tile, the fullest experts first, lest one of them is
alone at the end. The idea of the list is that of MegaBlocks (Gale et al. 2022,
arXiv:2211.15841, section 5.2), the order of the tiles that of Triton's tutorial
on matrix products: `band` tiles of rows take turns along the columns, for what
they share to stay in the cache.

On an NVIDIA H200 in bfloat16 it reaches 67 to 104 % of the rate of a plain
square product (results/bench). The default tiles are the best of eleven there,
or within the spread of the best; three or four stages and bands of 8 or 16 make
no difference that shows. An array above 4 GiB is addressed by 64 bits. jax 0.12
announces the end of the Triton backend of Pallas.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from moe_jax.errors import UserError
from moe_jax.kernels import gradients, sorted_rows

try:
  from jax.experimental.pallas import triton
except ImportError:  # Deprecated in jax 0.12: a later one may lack it.
  triton = None


def make(
  rows: int | None = None,
  cols: int | None = None,
  inner: int | None = None,
  band: int = 8,
  warps: int | None = None,
  stages: int = 3,
  interpret: bool = False,
):
  """Tiles of `rows` x `cols`, summed `inner` at a time.

  Args:
    rows: of a tile, a power of two from 16; None is by the mean group.
    cols: the same; None is by the width.
    inner: the same; None is 128 bytes.
    band: tiles of rows that take turns along the columns.
    warps: of a program, a power of two; None is by the tile.
    stages: of the pipeline of loads.
    interpret: runs as plain XLA, on any platform: for tests.

  Raises:
    ImportError: this jax has no Triton backend of Pallas.
    ValueError: one of them is not such a number.
  """
  if triton is None:
    raise ImportError(
      f"matmul 'triton' needs jax.experimental.pallas.triton, which jax "
      f"{jax.__version__} has not; 'ragged_dot' does without"
    )
  for name, value in (('rows', rows), ('cols', cols), ('inner', inner)):
    if value is not None and not _power_of_two(value, 16):
      raise UserError(
        f'triton: {name}={value!r} must be a power of two from 16'
      )
  if warps is not None and not _power_of_two(warps, 1):
    raise UserError(f'triton: warps={warps!r} must be a power of two')
  for name, value in (('band', band), ('stages', stages)):
    if not isinstance(value, int) or value < 1:
      raise UserError(f'triton: {name}={value!r} must be a whole number from 1')

  def tile(height, width, dtype):
    """Rows, columns and inner size of tiles; and what compiles them."""
    r, c = rows or _round(height, 128), cols or _round(width, 256)
    k = inner or 128 // dtype.itemsize
    # 128 registers a thread for the sums at most.
    w = warps or (8 if r * c >= 128 * 256 else 4)
    params = triton.CompilerParams(num_warps=w, num_stages=stages)
    call = functools.partial(
      pl.pallas_call, compiler_params=params, interpret=interpret
    )
    return (r, c, k, band), call

  def product(x_RA, w_eAB, sizes_e, transpose=False):
    (R, _), width = x_RA.shape, w_eAB.shape[1 if transpose else 2]
    E = len(sizes_e)
    # A quarter of the mean group: half a tile of an expert is empty.
    shape, call = tile(R // (4 * E), width, x_RA.dtype)
    tiles = tile_list(sizes_e, R, shape[0])
    return call(
      functools.partial(_product, shape=shape, transpose=transpose),
      out_shape=jax.ShapeDtypeStruct((R, width), x_RA.dtype),
      grid=(tiles[0].size * pl.cdiv(width, shape[1]),),
    )(x_RA, w_eAB, *tiles)

  def transposes(x_RA, w_eAB, sizes_e, dy_RB):
    E, A, B = w_eAB.shape
    shape, call = tile(A, B, x_RA.dtype)
    end_e = jnp.cumsum(sizes_e)
    dw_eAB = call(
      functools.partial(_weights, shape=shape),
      out_shape=jax.ShapeDtypeStruct((E, A, B), w_eAB.dtype),
      grid=(E * pl.cdiv(A, shape[0]) * pl.cdiv(B, shape[1]),),
    )(x_RA, dy_RB, jnp.argsort(-sizes_e), end_e - sizes_e, end_e)
    return product(dy_RB, w_eAB, sizes_e, transpose=True), dw_eAB

  return gradients.kernel(product, transposes)


def tile_list(sizes_e: jax.Array, R: int, rows: int):
  """The tiles of rows, of one expert each; those past the groups are E's.

  Returns:
    int32 of as many tiles as there can be: the expert, the first row, and the
    row after the last; that does not exceed the first where there is no tile.
  """
  sizes_S = jnp.append(sizes_e, R - sizes_e.sum())
  most = (R + min(R, len(sizes_S)) * (rows - 1)) // rows
  expert_t, place_t = sorted_rows.segment(-(-sizes_S // rows), most)
  end_t = jnp.cumsum(sizes_S)[expert_t]
  begin_t = end_t - sizes_S[expert_t] + place_t * rows
  return expert_t, begin_t, jnp.minimum(begin_t + rows, end_t)


def _power_of_two(value, least):
  whole = isinstance(value, int) and value >= least
  return whole and value & (value - 1) == 0


def _round(size, most):
  """The next power of two, from 16 to `most`."""
  return min(max(16, pl.next_power_of_2(max(size, 1))), most)


def _place(i, height, width, band):
  """Row and column of tile i of height x width tiles."""
  first = jax.lax.div(i, band * width) * band
  i = jax.lax.rem(i, band * width)
  high = jnp.minimum(height - first, band)
  return first + jax.lax.rem(i, high), jax.lax.div(i, high)


def _load(ref, index, mask):
  """Zeros where the mask, which may be True, is not."""
  if mask is True:
    return triton.load(ref.at[index])
  return triton.load(ref.at[index], mask=mask, other=0)


def _product(
  x_ref, w_ref, expert_ref, begin_ref, end_ref, y_ref, *, shape, transpose
):
  rows, cols, inner, band = shape
  E, depth, width = len(w_ref), x_ref.shape[1], y_ref.shape[1]
  t, c = _place(pl.program_id(0), len(expert_ref), pl.cdiv(width, cols), band)
  expert, begin, end = expert_ref[t], begin_ref[t], end_ref[t]

  @pl.when(begin < end)
  def _():
    row_r = begin + jnp.arange(rows)
    # Rows of other experts are computed and not written; it costs less than
    # a mask, and they may be NaN.
    read_r1 = jnp.minimum(row_r, end - 1)[:, None]
    col_c = c * cols + jnp.arange(cols)
    in_width_c = True if width % cols == 0 else col_c < width

    def step(i, y_rc):
      k = i * inner + jnp.arange(inner)
      in_depth_k = True if depth % inner == 0 else k < depth
      at = lambda v, axis: v if v is True else jnp.expand_dims(v, axis)
      x_rk = _load(x_ref, (read_r1, k[None]), at(in_depth_k, 0))
      if transpose:
        index = expert, col_c[:, None], k[None]
        live = _both(at(in_width_c, 1), at(in_depth_k, 0))
      else:
        index = expert, k[:, None], col_c[None]
        live = _both(at(in_depth_k, 1), at(in_width_c, 0))
      w = _load(w_ref, index, live)
      return y_rc + _dot(x_rk, w, 1, 1 if transpose else 0)

    # A product, as `where` of two numbers lowers to a bit.
    steps = (expert < E) * jnp.int32(pl.cdiv(depth, inner))
    y_rc = jnp.zeros((rows, cols), jnp.float32)
    y_rc = jax.lax.fori_loop(0, steps, step, y_rc)
    triton.store(
      y_ref.at[row_r[:, None], col_c[None]],
      y_rc.astype(y_ref.dtype),
      mask=(row_r < end)[:, None] & (col_c < width)[None],
    )


def _weights(x_ref, dy_ref, order_ref, begin_ref, end_ref, dw_ref, *, shape):
  rows, cols, inner, band = shape
  _, A, B = dw_ref.shape
  height, width = pl.cdiv(A, rows), pl.cdiv(B, cols)
  i = pl.program_id(0)
  expert = order_ref[jax.lax.div(i, height * width)]
  a, b = _place(jax.lax.rem(i, height * width), height, width, band)
  begin, end = begin_ref[expert], end_ref[expert]
  a, b = a * rows + jnp.arange(rows), b * cols + jnp.arange(cols)

  def step(i, dw_ab):
    row_k = begin + i * inner + jnp.arange(inner)
    live_k1 = (row_k < end)[:, None]

    def part(ref, col, size):
      live = live_k1 if size % len(col) == 0 else live_k1 & (col < size)[None]
      return _load(ref, (row_k[:, None], col[None]), live)

    return dw_ab + _dot(part(x_ref, a, A), part(dy_ref, b, B), 0, 0)

  dw_ab = jnp.zeros((rows, cols), jnp.float32)
  steps = pl.cdiv(end - begin, inner)
  dw_ab = jax.lax.fori_loop(0, steps, step, dw_ab)
  triton.store(
    dw_ref.at[expert, a[:, None], b[None]],
    dw_ab.astype(dw_ref.dtype),
    mask=(a < A)[:, None] & (b < B)[None],
  )


def _both(a, b):
  return b if a is True else a if b is True else a & b


def _dot(a, b, of_a, of_b):
  """Sums over the axes `of_a` and `of_b`, in float32."""
  dtype = jnp.promote_types(a.dtype, b.dtype)
  return jax.lax.dot_general(
    a.astype(dtype),
    b.astype(dtype),
    (((of_a,), (of_b,)), ((), ())),
    preferred_element_type=jnp.float32,
  )
