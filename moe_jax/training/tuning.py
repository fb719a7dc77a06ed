"""Which parameters are trained; the others are frozen.

ST-MoE (Zoph et al. 2022, arXiv:2202.08906, section 4.2, figure 5) fine-tunes
parts of a model alone. Frozen leaves get no gradient, no optimizer state and no
weight decay, and stand in no norm that gradients are clipped by.

The state of a layer's balancing rules belongs to its router: a selection bias
is of the scores that it is added to. It moves only where the router is trained,
or a frozen layer would route otherwise after every step. (`bip` still solves
for the bias of each training batch; what evaluation uses stays.)

A part of a leaf can be trained, too: `experts(of=(1,))` trains the experts of
these numbers, their columns of the router's matrix and their router biases, as
FlexOlmo's owners do (Shi et al. 2025, arXiv:2507.07024, section 3). What is
frozen of such a leaf gets no gradient, and what the optimizer would change of
it, by weight decay say, is not taken: it stays to the bit. Its moments are
there, of no gradient.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from moe_jax import registry
from moe_jax.errors import UserError

CHOICES = ('all', 'non_moe', 'moe', 'router', 'attention', 'ffn')


@dataclasses.dataclass(frozen=True)
class Part:
  """In a tree of what is trained: some of a leaf, by number along one axis."""

  axis: int
  of: tuple[int, ...]

  def chosen(self, shape: tuple[int, ...]) -> np.ndarray:
    """bool, of as many axes as the leaf has: what is trained of it.

    Raises:
      ValueError: a number that the axis has not.
    """
    if max(self.of) >= shape[self.axis]:
      raise UserError(
        f'train.trainable: experts(of={self.of}); there are '
        f'{shape[self.axis]} of them, from 0'
      )
    along = np.isin(np.arange(shape[self.axis]), self.of)
    others = (i for i in range(len(shape)) if i != self.axis % len(shape))
    return np.expand_dims(along, tuple(others))


@dataclasses.dataclass(frozen=True)
class Experts:
  """`experts(of=(1,))`: these experts of every MoE layer, and their routing.

  Attributes:
    of: their numbers.
    router: whether their columns of its matrix, and biases, are trained.
  """

  of: tuple[int, ...]
  router: bool = True

  def __post_init__(self):
    whole = isinstance(self.of, tuple) and self.of
    if not whole or not all(type(e) is int and e >= 0 for e in self.of):
      raise UserError(
        f'train.trainable: experts(of={self.of!r}); a tuple of the numbers of '
        'experts, from 0, is wanted'
      )

  def part(self, names: list[str], dims: int) -> Part | bool:
    """Of a leaf with `dims` leading axes of layers and experts."""
    at = 1 if 'period' in names else 0  # behind that of the layers
    if 'experts' in names:
      # What all experts of a layer have in common is not an owner's.
      return Part(dims - 1, self.of) if dims > at else False
    if 'moe' not in names or 'router' not in names or not self.router:
      return False
    if names[-1] not in ('kernel', 'bias'):
      raise UserError(
        'train.trainable=experts(...) wants a router with a column for each '
        f'expert; this one has {names[-1]!r}'
      )
    return Part(-1, self.of)


_PARTS = {'experts': Experts}


def trained(tree: Any, choice: str) -> Any:
  """Whether each leaf is trained; None where all are.

  'moe' is all that stands in an MoE layer: router, experts (those that layers
  share, too), and branches that it has inside; 'router' is its router alone,
  as FlexOlmo tunes a merge; 'non_moe' is the rest of the model. Of that
  rest, 'attention' is the kernels of attention and cross-attention, 'ffn' those
  of the dense FFN sub-layers (`moe.extra_ffn` included). Norms, embeddings and
  position biases are in
  neither of these two.

  Args:
    tree: for each parameter, how many leading axes are of layers and experts
      (`Layout.batch_dims`); of CHOICES the paths alone are looked at.
    choice: one of CHOICES, or a call of `experts`.

  Returns:
    Of each leaf True or False, or the `Part` of it that is trained.

  Raises:
    ValueError: another choice, or the model has no such parameters.
  """
  if choice == 'all':
    return None
  if '(' in choice:
    part = registry.call(choice, _PARTS, 'train.trainable').part
  elif choice in CHOICES:
    part = lambda names, _: _chosen(names, choice)
  else:
    raise registry.unknown('train.trainable', choice, (*CHOICES, 'experts()'))
  mask = jax.tree_util.tree_map_with_path(
    lambda path, dims: part(_names(path), dims), tree
  )
  if not any(jax.tree.leaves(mask)) and jax.tree.leaves(tree):
    raise UserError(
      f'train.trainable={choice!r}: the model has no such parameters'
    )
  return mask


def _names(path) -> list[str]:
  return jax.tree_util.keystr(path, simple=True, separator='/').split('/')


def of_moe(names: list[str]) -> bool:
  """Whether a leaf is an MoE layer's, or a pool's that such layers share."""
  return 'moe' in names or 'experts' in names


def _chosen(names: list[str], choice: str) -> bool:
  if of_moe(names):
    return choice == 'moe' or (choice == 'router' and 'router' in names)
  if choice == 'non_moe':
    return True
  if any(n.endswith('_norm') for n in names):
    return False
  own = {'attention': ('attention', 'cross'), 'ffn': ('ffn', 'extra')}
  return any(n in names for n in own.get(choice, ()))


def router_moves(block: Any) -> bool:
  """Whether the router of an MoE layer is trained, and with it the state.

  A router without parameters goes with the rest of its layer. One of which a
  part is trained leaves the state as it is: some of it is of what is frozen.

  Args:
    block: whether each leaf of the layer's block is trained; None is all.
  """
  if block is None:
    return True
  layer = block['moe']
  own = jax.tree.leaves(layer.get('router', {}))
  found = own or jax.tree.leaves(layer)
  return any(found) and not any(isinstance(m, Part) for m in found)


def select(tree: Any, mask: Any) -> Any:
  """The trained leaves; in place of the others `optax.MaskedNode`, no leaf."""
  if mask is None:
    return tree
  return jax.tree.map(lambda m, v: v if m else optax.MaskedNode(), mask, tree)


def merge(own: Any, tree: Any, mask: Any) -> Any:
  """`tree` with the trained leaves of `own`; nothing flows into the others."""
  if mask is None:
    return own

  def one(m, v, old):
    if m is True:
      return v
    old = jax.lax.stop_gradient(old)
    return jnp.where(m.chosen(old.shape), v, old) if m else old

  return jax.tree.map(one, mask, own, tree)


def size(params: Any, mask: Any) -> int:
  """How many parameters are trained."""
  if mask is None:
    return sum(math.prod(v.shape) for v in jax.tree.leaves(params))

  def one(m, v):
    whole = math.prod(v.shape)
    if not isinstance(m, Part):
      return whole if m else 0
    chosen = m.chosen(v.shape)
    return whole // chosen.size * int(chosen.sum())

  return sum(jax.tree.leaves(jax.tree.map(one, mask, params)))


def whole(mask: Any) -> Any:
  """Whether anything of each leaf is trained: a tree of bools."""
  return jax.tree.map(bool, mask)
