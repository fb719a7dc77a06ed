"""Arithmetic of gates: quotients, however small the parts, and a smooth step.

JAX differentiates a / b with b**-2, which overflows in float32 below 5.4e-20:
a guard in the forward pass is none in the backward pass. Affinities that have
logarithms are divided in these, gates with true zeros by their largest first.
"""

import jax
import jax.numpy as jnp

# Below it gates count as 0: the slope of their quotient, one over the largest,
# would leave no room in float32 for what it is multiplied by.
LEAST = 1e-30


def shares_of_logs(
  log_v: jax.Array, used: jax.Array, axis: int = -1
) -> jax.Array:
  """exp(log_v) over the sum of those that are `used`; 0 for the others.

  Args:
    log_v: f32; may be -inf where not used.
    used: bool, of its shape; where nothing is, all are 0.
    axis: of the sum.
  """
  top = jnp.where(used, jax.lax.stop_gradient(log_v), -jnp.inf)
  top = jnp.maximum(top.max(axis, keepdims=True), jnp.finfo(log_v.dtype).min)
  v = jnp.exp(jnp.where(used, log_v - top, -jnp.inf))
  total = v.sum(axis, keepdims=True)
  return v / jnp.where(total > 0, total, 1.0)


def shares(v: jax.Array, axis: int = -1) -> jax.Array:
  """Non-negative values over their sum; 0 where all are below LEAST."""
  v = scaled(v, axis)
  total = v.sum(axis, keepdims=True)
  return v / jnp.where(total > 0, total, 1.0)


def scaled(v: jax.Array, axis: int = -1) -> jax.Array:
  """Non-negative values over their largest, which is held fixed.

  What follows is to be the same for any such factor; 0 where all are below
  LEAST.
  """
  top = jax.lax.stop_gradient(v.max(axis, keepdims=True))
  some = top >= LEAST
  return jnp.where(some, v / jnp.where(some, top, 1.0), 0.0)


def smooth_step(x: jax.Array, width: float) -> jax.Array:
  """A cubic, 0 up to -width / 2, 1 from width / 2 (arXiv:2002.07772, eq. 5).

  That of -x is 1 less that of x, to more digits than the difference has.
  """
  u = jnp.clip(x / width + 0.5, 0, 1)
  return u * u * (3 - 2 * u)


def log_softplus(x: jax.Array) -> jax.Array:
  """log(log(1 + exp(x))), which is x itself far below 0."""
  return jnp.where(x < -16, x, jnp.log(jax.nn.softplus(jnp.maximum(x, -16))))
