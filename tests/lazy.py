"""JAX for methods' tests, loaded where one runs: rows are read without it."""

import importlib


class _Module:
  """A module that is imported when something of it is asked for."""

  def __init__(self, name):
    self._name = name

  def __getattr__(self, attribute):
    return getattr(importlib.import_module(self._name), attribute)


jax, jnp, types = map(_Module, ('jax', 'jax.numpy', 'moe_jax.types'))
nn, linen = map(_Module, ('flax.linen', 'moe_jax.layers.linen'))
moe = _Module('moe_jax.layers.moe')
balancing = _Module('moe_jax.balancing.base')
hlo = _Module('moe_jax.parallel.hlo')
mesh_lib = _Module('moe_jax.parallel.mesh')
routing = _Module('tests.routing')
ragged = _Module('moe_jax.dispatch.ragged_all_to_all')
order_statistics = _Module('moe_jax.kernels.order_statistics')
optimize = _Module('scipy.optimize')
