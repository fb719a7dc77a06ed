"""Parameters of Linen modules with their logical axes.

The names are those of `parallel.rules`, by which a mesh shards them.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from moe_jax.errors import UserError
from moe_jax.parallel import rules


class Box(nn.LogicallyPartitioned):
  """An array with its logical axes, and the mesh that it is to live on.

  For NNX, whose variables look up mesh axes of their own: a variable gets the
  array where RULES put it, and no sharding that would need a mesh in context.
  """

  def to_nnx_metadata(self) -> dict[str, Any]:
    """What `flax.nnx.bridge` makes a variable of."""
    value = rules.constrain(self.value, self.names, self.mesh)
    return {'value': value, 'names': self.names, 'mesh': self.mesh}

  @classmethod
  def from_nnx_metadata(cls, metadata: dict[str, Any]) -> 'Box':
    """The way back."""
    return cls(metadata['value'], metadata['names'], metadata['mesh'])


def boxed(init: Callable, axes: Any, mesh=None) -> Callable:
  """An initialiser whose arrays are boxed.

  Args:
    init: makes a tree of arrays.
    axes: logical axes, a tuple where the tree has an array.
    mesh: that the model runs on, or None.
  """
  box = lambda v, names: Box(v, tuple(names), mesh)
  return lambda *args: jax.tree.map(box, init(*args), axes)


def logical_axes(tree) -> Any:
  """Tree of logical axis tuples.

  Raises:
    ValueError: a parameter without its axes. Scanning would stack it unseen,
      and its layer axis be taken for one of its own.
  """
  is_box = lambda x: isinstance(x, Box)

  def one(path, leaf):
    if not is_box(leaf):
      raise UserError(
        f'parameter {jax.tree_util.keystr(path)} has no logical axes; give '
        'Linen its initialiser by boxes.boxed'
      )
    return tuple(leaf.names)

  return jax.tree_util.tree_map_with_path(one, tree, is_leaf=is_box)
