"""Grouped matrix product: each row times the matrix of its own expert.

One function, (x_RA, w_eAB, sizes_e) -> y_RB, and several ways to compute it:

  auto        `blocked` on CPU, `ragged_dot` elsewhere
  blocked     blocks of rows of one expert each, in a loop
  ragged_dot  XLA's own
  loop        one expert at a time over all rows; for tests

Rows are sorted by expert, `sizes_e` (int32) of them each. Rows past
`sizes_e.sum()` may hold anything, NaN too: they influence neither values nor
gradients, their results and their gradients are zeros. On real hardware rows
that no kernel wrote are garbage, whatever they are on CPU.

Sums run in float32, the result has the dtype of x, the gradients those of
their arguments. Differentiable once, in reverse.
"""

from collections.abc import Callable

import jax

from moe_jax import registry
from moe_jax.kernels import blocked, loop, ragged_dot
from moe_jax.parallel import compat

Matmul = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def auto() -> Matmul:
  """The fastest of the platform that the program is compiled for."""
  on_cpu, elsewhere = blocked.make(), ragged_dot.make()

  # Differentiated from outside: the choice is a conditional until it is
  # lowered, and would keep the residuals of both.
  @jax.custom_vjp
  def matmul(x_RA, w_eAB, sizes_e):
    return jax.lax.platform_dependent(
      x_RA, w_eAB, sizes_e, cpu=on_cpu, default=elsewhere
    )

  def forward(*args):
    return matmul(*args), args

  def backward(args, dy_RB):
    x_RA, w_eAB, sizes_e = args

    def gradients(f):
      def of(x, w, sizes, dy):
        return jax.vjp(lambda x, w: f(x, w, sizes), x, w)[1](dy)

      return of

    dx, dw = jax.lax.platform_dependent(
      x_RA,
      w_eAB,
      sizes_e,
      dy_RB,
      cpu=gradients(on_cpu),
      default=gradients(elsewhere),
    )
    return dx, dw, None

  matmul.defvjp(forward, backward)
  return matmul


MATMULS = {
  'auto': auto,
  'blocked': blocked.make,
  'loop': loop.make,
  'ragged_dot': ragged_dot.make,
}


def build(spec: str) -> Matmul:
  """The product that a call string names, such as 'blocked(rows=128)'.

  Raises:
    ValueError: unknown name or argument, or a bad value.
  """
  backend = registry.call(spec, MATMULS, 'matmul')

  def matmul(x_RA, w_eAB, sizes_e):
    args = x_RA, w_eAB, sizes_e
    axes = frozenset().union(*map(compat.varying, args))
    return backend(*(compat.device_varying(a, axes) for a in args))

  return matmul
