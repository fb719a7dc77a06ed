"""Grouped matrix product by tokamax, a library of kernels for GPU and TPU.

It chooses among its kernels by the device that is found while tracing: on CPU
it is `jax.lax.ragged_dot`. Its tiles are tuned for the GPUs that it has tables
for, H100 and B200 in 0.0.12; others get one size for all shapes.
"""

import jax.numpy as jnp

from moe_jax.kernels import gradients, ragged_dot

IMPLEMENTATIONS = ('mosaic', 'triton', 'xla')


def make(implementation: str | None = None):
  """tokamax's product; `implementation` None is its own choice.

  Raises:
    ImportError: the package is missing; one line that says what to install.
    ValueError: no such implementation.
  """
  if implementation not in (None, *IMPLEMENTATIONS):
    raise ValueError(
      f'tokamax: implementation={implementation!r}; valid: None, '
      f'{", ".join(IMPLEMENTATIONS)}'
    )
  try:
    import tokamax
  except ImportError as e:
    raise ImportError(
      f"matmul 'tokamax' needs its package: pip install 'moe_jax[gpu]' ({e})"
    ) from None

  def dot(x_RA, w_eAB, sizes_e):
    return tokamax.ragged_dot(
      x_RA,
      w_eAB,
      sizes_e,
      preferred_element_type=x_RA.dtype,
      implementation=implementation,
    )

  product = ragged_dot.over_live_rows(dot)
  transposed = gradients.by_transposition(product)

  def transposes(x_RA, w_eAB, sizes_e, dy_RB):
    dx_RA, dw_eAB = transposed(x_RA, w_eAB, sizes_e, dy_RB)
    # Its Triton kernel gives an expert without rows the rows before its own.
    return dx_RA, jnp.where(sizes_e[:, None, None] > 0, dw_eAB, 0)

  return gradients.kernel(product, transposes)
