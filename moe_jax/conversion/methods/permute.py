"""Experts in another order, with all that is theirs: nothing changes.

Rows of the router, biases of the selection, states of other balancing rules,
the optimizer's moments go along. Routers that know experts by their places
(blocks of nodes, an anchor) are tried on random tokens first: an order that
they would notice is refused, and so is one that tears apart the blocks of a
balancing rule. No paper: the group that acts on any mixture.
"""

import dataclasses

import jax
import numpy as np

from moe_jax import registry
from moe_jax.balancing import base as balancing
from moe_jax.conversion import experts, probing
from moe_jax.conversion.methods import base
from moe_jax.errors import UserError


@registry.register
@dataclasses.dataclass(frozen=True)
class Permute(base.Method):
  """The order, the same in all layers.

  Attributes:
    order: old numbers in their new order; () draws one.
    blocks: where it is drawn, equal blocks of experts that move as a whole.
    optimizer: its state is carried.
  """

  order: tuple[int, ...] = ()
  blocks: int = 1
  optimizer: bool = True

  def __call__(self, key, model):
    found = experts.layers(model)
    layer = next(iter(found.values()))
    E = layer.num_experts
    order = list(self.order) or self._drawn(key, E)
    if sorted(map(str, order)) != sorted(map(str, range(E))):
      raise UserError(
        f'permute: order={self.order}; the numbers 0 to {E - 1}, each once, '
        'are wanted'
      )
    experts.check_anchors(layer, order)
    probing.permutes(layer, experts.axes(layer, probing.WIDTH), order)
    for rule in layer.balance:
      blocks = np.arange(E).reshape(rule.devices, -1)
      moved = np.sort(np.array(order).reshape(blocks.shape), axis=1)
      if set(map(tuple, moved)) != set(map(tuple, blocks)):
        raise UserError(
          f'permute: order={tuple(order)} tears apart the {rule.devices} blocks'
          f' of {balancing.name(rule)}'
        )
    return experts.taken(model, dict.fromkeys(found, order))

  def _drawn(self, key, E):
    if self.blocks < 1 or E % self.blocks:
      raise UserError(f'permute: blocks={self.blocks} of {E} experts')
    key_blocks, key_inside = jax.random.split(key)
    grid = np.arange(E).reshape(self.blocks, -1)
    grid = grid[np.asarray(jax.random.permutation(key_blocks, self.blocks))]
    keys = jax.random.split(key_inside, self.blocks)
    rows = [
      row[np.asarray(jax.random.permutation(k, len(row)))]
      for k, row in zip(keys, grid)
    ]
    return [int(e) for e in np.concatenate(rows)]
