"""Products that bring their own gradients."""

import jax

from moe_jax.parallel import compat


def given(product, transposes):
  """`product` of (x_RA, w_eAB, sizes_e), with its arguments as residuals.

  Args:
    product: the function.
    transposes: (x_RA, w_eAB, sizes_e, dy_RB) -> dx_RA, dw_eAB.
  """

  @jax.custom_vjp
  def matmul(x_RA, w_eAB, sizes_e):
    return product(x_RA, w_eAB, sizes_e)

  def forward(*args):
    return matmul(*args), args

  def backward(args, dy_RB):
    return *transposes(*args, dy_RB), None

  matmul.defvjp(forward, backward)
  return matmul


def kernel(product, transposes):
  """`given`, for kernels that carry no varying-axes types."""
  return given(compat.untyped(product), compat.untyped(transposes))


def by_transposition(product):
  """The `transposes` of a product that JAX can differentiate."""

  def transposes(x_RA, w_eAB, sizes_e, dy_RB):
    f = lambda x, w: product(x, w, sizes_e)
    return jax.vjp(f, x_RA, w_eAB)[1](dy_RB)

  return transposes
