"""What the routers of all groups of a device get."""

from typing import Any

import jax
import jax.numpy as jnp

from moe_jax import types
from moe_jax.parallel import axes as axes_lib, collectives


def keys(key: jax.Array, axes: axes_lib.Axes, G: int, part=None):
  """Keys of this device's groups [G], and one that all groups share.

  Noise follows the group's place in the batch, never device or micro-batch.

  Args:
    key: of the layer and step.
    axes: mesh axes.
    G: groups of this device here.
    part: as in types.Tokens.
  """
  a, parts = (0, 1) if part is None else part
  first = collectives.index(axes.batch) * parts + a
  group_G = first * G + jnp.arange(G, dtype=jnp.int32)
  # The last number is no group's.
  shared = jax.random.fold_in(key, 2**32 - 1)
  return jax.vmap(jax.random.fold_in, (None, 0))(key, group_G), shared


def make(
  by_group: dict[str, Any], same: dict[str, Any], static: dict[str, Any]
) -> tuple[types.Context, types.Context]:
  """The Context of all groups, and the one that says where its axes are.

  Args:
    by_group: fields whose leaves have a leading axis of groups, or None.
    same: fields that all groups share.
    static: fields that are no arrays.
  """
  blank = {'key': None, 'carry': ()}
  ctx = types.Context(**blank | by_group | same | static)
  axis = {k: 0 for k, v in by_group.items() if jax.tree.leaves(v)}
  return ctx, types.Context(**blank | axis | dict.fromkeys(same) | static)


@jax.custom_batching.custom_vmap
def over_groups(v: jax.Array) -> jax.Array:
  """Inside a vmap over groups, the sum over them, the same for all.

  A psum over the vmapped axis, which `shard_map` refuses while it checks what
  varies.
  """
  return v


@over_groups.def_vmap
def _sum(size, batched, v):
  return (v.sum(0) if batched[0] else size * v), False
