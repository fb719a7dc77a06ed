"""Logical axes of parameters and activations -> mesh axes, in one table.

  | logical axis | mesh axes            | of                                 |
  | batch        | data, fsdp, expert   | tokens of activations              |
  | embed        | fsdp                 | model width of parameters          |
  | mlp, heads,  | model                | what tensor parallelism splits     |
  |   vocab      |                      |                                    |
  | expert       | expert               | stacked expert weights             |
  | layers, None | -                    | scanned layers, all the rest       |

Parameters are boxed with their logical axes by `layers.boxes`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec as P

from moe_jax.errors import UserError

RULES: dict[str, tuple[str, ...]] = {
  'batch': ('data', 'fsdp', 'expert'),
  'embed': ('fsdp',),
  'mlp': ('model',),
  'heads': ('model',),
  'vocab': ('model',),
  'expert': ('expert',),
  'layers': (),
}


def spec(axes: Sequence[str | None], shape: Mapping[str, int]) -> P:
  """PartitionSpec of an array with these logical axes on a mesh shape.

  Mesh axes of size 1 are left out, and one mesh axis never shards two
  dimensions: the first keeps it (expert weights are [E, D, F] with E on
  `expert`, D on `fsdp`).
  """
  used: set[str] = set()
  out = []
  for a in axes:
    names = RULES[a] if a is not None else ()
    names = tuple(n for n in names if shape[n] > 1 and n not in used)
    used.update(names)
    out.append(names[0] if len(names) == 1 else names or None)
  return P(*out)


def is_axes(x: Any) -> bool:
  return isinstance(x, tuple) and all(a is None or a in RULES for a in x)


def specs(axes_tree, shapes, mesh_shape: Mapping[str, int]) -> Any:
  """Tree of PartitionSpecs; checks that every sharded dimension divides.

  Raises:
    ValueError: names the parameter, its dimension and the mesh axes.
  """

  def one(path, axes, leaf):
    out = spec(axes, mesh_shape)
    for dim, (size, names) in enumerate(zip(leaf.shape, out)):
      names = (names,) if isinstance(names, str) else names or ()
      parts = 1
      for n in names:
        parts *= mesh_shape[n]
      if size % parts:
        raise UserError(
          f'parameter {jax.tree_util.keystr(path)} of shape {leaf.shape}: '
          f'dimension {dim} ({axes[dim]}, {size}) is not divisible by mesh '
          f'axes {names} of size {parts}'
        )
    return out

  return jax.tree_util.tree_map_with_path(
    one, axes_tree, shapes, is_leaf=is_axes
  )


def shardings(mesh, specs_tree) -> Any:
  """NamedShardings of a tree of PartitionSpecs."""
  return jax.tree.map(
    lambda s: NamedSharding(mesh, s),
    specs_tree,
    is_leaf=lambda x: isinstance(x, P),
  )


def constrain(x: jax.Array, axes: Sequence[str | None], mesh) -> jax.Array:
  """Pins an activation's sharding so that XLA's choice cannot drift.

  A batch that does not divide over the mesh (one row of a generation, the
  sample an initialiser is traced with) is left alone.
  """
  if mesh is None:
    return x
  s = spec(axes, mesh.shape)
  for size, names in zip(x.shape, s):
    names = (names,) if isinstance(names, str) else names or ()
    parts = 1
    for n in names:
      parts *= mesh.shape[n]
    if size % parts:
      return x
  return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, s))
