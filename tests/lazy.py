"""JAX for methods' tests, loaded where one runs: rows are read without it."""

import importlib


class _Module:
  """A module that is imported when something of it is asked for."""

  def __init__(self, name):
    self._name = name

  def __getattr__(self, attribute):
    return getattr(importlib.import_module(self._name), attribute)


jax, jnp, types = map(_Module, ('jax', 'jax.numpy', 'moe_jax.types'))
