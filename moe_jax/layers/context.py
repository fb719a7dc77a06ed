"""What the routers of all groups of a device get."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from moe_jax import types
from moe_jax.balancing import base as balancing
from moe_jax.parallel import axes as axes_lib, collectives


def make(
  rules: Sequence[balancing.Balance],
  E: int,
  tokens: types.Tokens,
  carry: Any,
  shared: dict[str, Any],
  features: Any,
  axes: axes_lib.Axes,
  *,
  train: bool,
  num_local: int,
) -> tuple[types.Context, types.Context]:
  """The Context of all groups, and the one that says where its axes are.

  Args:
    rules: the layer's balancing rules.
    E: experts that are routed to.
    tokens, carry: of this device, leaves [G, T, ...].
    shared: what all devices have alike: 'states' of the rules, 'key' of the
      router, 'step' and 'part' as in types.Tokens, 'layer'.
    features: as in types.Context.
    axes: mesh axes.
    train, num_local: as in types.Context.
  """
  forced = tokens.forced
  by_group = {
    'mask_T': tokens.mask,
    'ids_T': tokens.ids,
    'positions_T': tokens.positions,
    'segments_T': tokens.segments,
    'forced_TK': None if forced is None else forced[:, :, shared['layer']],
    'carry': carry,
  }
  same = {
    'selection_bias_E': balancing.selection_bias(
      rules, shared['states'], E, train
    ),
    'step': shared['step'],
    'layer': shared['layer'],
    'features': features,
  }
  static = {'num_local': num_local, 'train': train}
  if shared['key'] is not None:
    by_group['key'], same['layer_key'] = keys(
      shared['key'], axes, tokens.mask.shape[0], shared['part']
    )
  if train:
    total = lambda v: collectives.psum(
      _over_groups(v), axes.batch, name='solve'
    )
    static['solve'] = balancing.solver(rules, shared['states'], total)
  blank = {'key': None, 'carry': ()}
  ctx = types.Context(**blank | by_group | same | static)
  axis = {k: 0 for k, v in by_group.items() if jax.tree.leaves(v)}
  return ctx, types.Context(**blank | axis | dict.fromkeys(same) | static)


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


@jax.custom_batching.custom_vmap
def _over_groups(v: jax.Array) -> jax.Array:
  """Inside a vmap over groups, the sum over them, the same for all.

  A psum over the vmapped axis, which `shard_map` refuses while it checks what
  varies.
  """
  return v


@_over_groups.def_vmap
def _sum(size, batched, v):
  return (v.sum(0) if batched[0] else size * v), False
