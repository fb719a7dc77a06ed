"""Whether all numbers of a state are finite: one pass over it, where it is."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P


def fault(leaves: Mapping[str, Any]) -> str:
  """'params/w is not finite, nor are 3 more', or ''; every process calls it.

  Reads the floating-point arrays once and writes a bit for each: on a device
  with 1 TB/s 15 ms for 16 GB.

  Args:
    leaves: arrays by name, as from `checkpoint.named`.
  """
  floats = {
    k: v
    for k, v in leaves.items()
    if jnp.issubdtype(v.dtype, jnp.inexact) and v.size
  }
  if not floats:
    return ''
  first = next(iter(floats.values()))
  finite = np.asarray(_checker(_everywhere(first))(list(floats.values())))
  bad = [k for k, ok in zip(floats, finite) if not ok]
  if not bad:
    return ''
  more = f', nor are {len(bad) - 1} more' if len(bad) > 1 else ''
  return f'{bad[0]} is not finite{more}'


def _everywhere(leaf: jax.Array) -> NamedSharding | None:
  sharding = getattr(leaf, 'sharding', None)
  if isinstance(sharding, NamedSharding):
    return NamedSharding(sharding.mesh, P())
  return None


@functools.lru_cache(maxsize=4)
def _checker(out: NamedSharding | None):
  def finite(leaves: Sequence[jax.Array]) -> jax.Array:
    return jnp.stack([jnp.isfinite(v).all() for v in leaves])

  return jax.jit(finite, out_shardings=out)
