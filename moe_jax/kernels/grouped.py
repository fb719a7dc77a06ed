"""Grouped matrix product: each row times the matrix of its own expert.

One function, (x_RA, w_eAB, sizes_e) -> y_RB, and several ways to compute it:

  auto        by platform: `blocked` on CPU, `megablox` on TPU, `triton` on
              NVIDIA GPUs; `ragged_dot` elsewhere, and for types other than
              float32 and bfloat16 off CPU
  blocked     blocks of rows of one expert each, in a loop
  megablox    JAX's kernels for TPU
  ragged_dot  XLA's own
  triton      our kernels for NVIDIA GPUs
  loop        one expert at a time over all rows; for tests

Rows are sorted by expert, `sizes_e` (int32) of them each. Rows past
`sizes_e.sum()` may hold anything, NaN too: they influence neither values nor
gradients, their results and their gradients are zeros. On real hardware rows
that no kernel wrote are garbage, whatever they are on CPU.

Sums run in float32, the result has the dtype of x, the gradients those of
their arguments. Differentiable once, in reverse.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.kernels import (
  blocked,
  gradients,
  loop,
  megablox,
  pallas_triton,
  ragged_dot,
)
from moe_jax.parallel import compat

Matmul = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@functools.cache
def auto(every: bool = False) -> Matmul:
  """The fastest of the platform that the program is compiled for.

  Args:
    every: kernels for accelerators are there although none is found, to lower
      for one elsewhere. They are traced then, on CPU too.
  """
  kernels = {'cpu': blocked.make(), 'default': ragged_dot.make()}
  kernels |= {'tpu': megablox.make(), 'cuda': kernels['default']}
  if pallas_triton.triton:
    kernels['cuda'] = pallas_triton.make()
  transposes = {p: gradients.by_transposition(f) for p, f in kernels.items()}

  def choice(functions):
    # All are traced, whatever the platform: a compiled function once a shape.
    few = {p: functions[p] for p in ('cpu', 'default')}
    all_ = few | {p: jax.jit(functions[p]) for p in ('tpu', 'cuda')}

    def choose(x_RA, w_eAB, *args):
      known = {x_RA.dtype, w_eAB.dtype} <= {jnp.dtype('f4'), jnp.bfloat16.dtype}
      accelerated = every or jax.default_backend() != 'cpu'
      branches = all_ if known and accelerated else few
      return jax.lax.platform_dependent(x_RA, w_eAB, *args, **branches)

    return choose

  # Differentiated from outside: the choice is a conditional until it is
  # lowered, and would keep the residuals of all.
  return gradients.given(choice(kernels), choice(transposes))


MATMULS = {
  'auto': auto,
  'blocked': blocked.make,
  'loop': loop.make,
  'megablox': megablox.make,
  'ragged_dot': ragged_dot.make,
  'triton': pallas_triton.make,
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
