"""Grouped matrix product by JAX's own Pallas kernels for TPU, megablox.

Gale et al., "MegaBlocks", 2022, arXiv:2211.15841, as tiles of rows that two
experts may share: such a tile is computed once for each of them. Tiles of rows
must divide the rows; where they cannot, the rows are padded, which costs a copy
of them. The kernels leave rows past the groups unwritten.

No default is tuned, as no TPU was at hand.
"""

import math

import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.megablox import ops

from moe_jax.errors import UserError
from moe_jax.kernels import gradients


def make(
  rows: int | None = None,
  cols: int = 1024,
  inner: int | None = None,
  interpret: bool = False,
):
  """Tiles of `rows` x `cols`, summed `inner` at a time.

  Args:
    rows: of a tile, a multiple of 16; None is by the mean group, 128 to 512.
    cols: a multiple of 128.
    inner: a multiple of 128; None is 2 KiB.
    interpret: runs as plain XLA, on any platform: for tests.

  Raises:
    ValueError: one of them is no such multiple.
  """
  for name, value, unit in (
    ('rows', rows, 16),
    ('cols', cols, 128),
    ('inner', inner, 128),
  ):
    whole = isinstance(value, int) and value > 0 and value % unit == 0
    if value is not None and not whole:
      raise UserError(
        f'megablox: {name}={value!r} must be a multiple of {unit}'
      )

  def tiles(x_RA, width, E):
    """Tiles of rows, inner and columns; and the rows to be added to x."""
    R, depth = x_RA.shape
    # Half a tile of an expert is another's: that is a quarter more at most.
    mean = max(R // E, 1).bit_length()
    r = rows or min(max(2 ** (mean - 2), 128), 512)
    if math.gcd(R, r) >= 128:
      r = math.gcd(R, r)
    else:
      r = min(r, -(-R // 16) * 16)
    k = inner or 2048 // x_RA.dtype.itemsize
    return (r, min(k, depth), min(cols, width)), -R % r

  def padded(v_RA, more):
    return jnp.pad(v_RA, ((0, more), (0, 0))) if more else v_RA

  def product(x_RA, w_eAB, sizes_e, transpose=False):
    R, width = x_RA.shape[0], w_eAB.shape[1 if transpose else 2]
    tile, more = tiles(x_RA, width, len(sizes_e))
    y_RB = ops.backend.gmm(
      padded(x_RA, more),
      w_eAB,
      sizes_e,
      x_RA.dtype,
      tile,
      transpose_rhs=transpose,
      interpret=interpret,
    )[:R]
    live_R = jnp.arange(R, dtype=jnp.int32) < sizes_e.sum()
    return jnp.where(live_R[:, None], y_RB, 0)

  def transposes(x_RA, w_eAB, sizes_e, dy_RB):
    tile, more = tiles(x_RA, w_eAB.shape[2], len(sizes_e))
    dw_eAB = ops.backend.tgmm(
      padded(x_RA, more).T,
      padded(dy_RB, more),
      sizes_e,
      w_eAB.dtype,
      tile,
      interpret=interpret,
    )
    return product(dy_RB, w_eAB, sizes_e, transpose=True), dw_eAB

  return gradients.kernel(product, transposes)
