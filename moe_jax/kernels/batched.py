"""Batched product: padded buffers [E, R, A] times the experts' [E, A, B].

One batched product everywhere but on CPU, and there too unless experts are
many and small. XLA's products on CPU then run on one core where they sum over
the narrower of the two widths: for 256 experts of 128 x 512 and 128 rows each,
115 ms where a loop over the experts takes 70 (2 cores); where they sum over the
wider one, 35 ms against 70. So each of the three products chooses.
"""

import jax
import jax.numpy as jnp

from moe_jax.parallel import compat

MANY = 64  # experts
SMALL = 2**25  # multiplications of one expert's product


def product(x_ERA: jax.Array, w_EAB: jax.Array) -> jax.Array:
  """[E, R, B], each expert's rows times its own matrix."""
  E, R, A = x_ERA.shape
  by_loop = (
    jax.default_backend() == 'cpu'
    and E >= MANY
    and R * A * w_EAB.shape[2] <= SMALL
    and A != w_EAB.shape[2]
  )
  if not by_loop:
    return jnp.einsum('era,eab->erb', x_ERA, w_EAB)
  axes = compat.varying(x_ERA) | compat.varying(w_EAB)
  return _narrow(*(compat.device_varying(v, axes) for v in (x_ERA, w_EAB)))


@jax.custom_vjp
def _narrow(x_ERA, w_EAB):
  return _multiply(x_ERA, w_EAB, 1)


def _forward(x_ERA, w_EAB):
  return _narrow(x_ERA, w_EAB), (x_ERA, w_EAB)


def _backward(saved, dy_ERB):
  x_ERA, w_EAB = saved
  dx_ERA = _multiply(dy_ERB, w_EAB, 2)
  return dx_ERA, jnp.einsum('era,erb->eab', x_ERA, dy_ERB)


_narrow.defvjp(_forward, _backward)


def _multiply(x_ERS, w_EAB, summed: int):
  """x times w over w's axis `summed`: a loop where that is the shorter one."""
  contract = jax.lax.dot_general
  wide = w_EAB.shape[3 - summed]
  if w_EAB.shape[summed] > wide:
    return contract(x_ERS, w_EAB, (((2,), (summed,)), ((0,), (0,))))

  def expert(e, y_ERW):
    x_RS, w_AB = (
      jax.lax.dynamic_index_in_dim(v, e, keepdims=False) for v in (x_ERS, w_EAB)
    )
    y_RW = contract(x_RS, w_AB, (((1,), (summed - 1,)), ((), ())))
    return jax.lax.dynamic_update_index_in_dim(y_ERW, y_RW, e, 0)

  E, R = x_ERS.shape[:2]
  y_ERW = jnp.zeros((E, R, wide), x_ERS.dtype)
  y_ERW = compat.device_varying(y_ERW, compat.varying(x_ERS))
  return jax.lax.fori_loop(0, E, expert, y_ERW)
