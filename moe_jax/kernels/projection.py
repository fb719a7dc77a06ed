"""A product with float32 weights in another dtype, whose gradient is float32.

Cast first and multiplied then, weights have a gradient of 16 bits: where XLA
splits the tokens over devices, each device's part is rounded and the parts are
added up in 16 bits. Here the product that makes the gradient gives float32, and
so does the sum over devices, with twice the bytes on the wire.
"""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def project(spec: str, x: jax.Array, w: jax.Array) -> jax.Array:
  """einsum(spec, x, w) in the dtype of `x`; no forward mode.

  Args:
    spec: 'bld,dhj->blhj': letters, those of a sum in two of the three parts.
    x: activations.
    w: f32 weights.
  """
  return jnp.einsum(spec, x, w.astype(x.dtype))


def _forward(spec, x, w):
  return project(spec, x, w), (x, w)


def _backward(spec, saved, dy):
  x, w = saved
  of_x, of_w, of_y = spec.replace('->', ',').split(',')
  dx = jnp.einsum(f'{of_y},{of_w}->{of_x}', dy, w.astype(dy.dtype))
  dw = jnp.einsum(
    f'{of_x},{of_y}->{of_w}', x, dy, preferred_element_type=jnp.float32
  )
  return dx, dw.astype(w.dtype)


project.defvjp(_forward, _backward)
