"""Which parameters are trained; the others are frozen.

ST-MoE (Zoph et al. 2022, arXiv:2202.08906, section 4.2, figure 5) fine-tunes
parts of a model alone. Frozen leaves get no gradient, no optimizer state and no
weight decay, and stand in no norm that gradients are clipped by.

The state of a layer's balancing rules belongs to its router: a selection bias
is of the scores that it is added to. It moves only where the router is trained,
or a frozen layer would route otherwise after every step. (`bip` still solves
for the bias of each training batch; what evaluation uses stays.)
"""

import math
from typing import Any

import jax
import optax

from moe_jax import registry
from moe_jax.errors import UserError

CHOICES = ('all', 'non_moe', 'moe', 'attention', 'ffn')


def trained(tree: Any, choice: str) -> Any:
  """Whether each leaf is trained; None where all are.

  'moe' is all that stands in an MoE layer: router, experts (those that layers
  share, too), and branches that it has inside; 'non_moe' the rest. Of that
  rest, 'attention' is the kernels of attention and cross-attention, 'ffn' those
  of the dense FFN sub-layers (`moe.extra_ffn` included). Norms, embeddings and
  position biases are in
  neither of these two.

  Args:
    tree: parameters, or any tree with their paths.
    choice: one of CHOICES.

  Raises:
    ValueError: another choice, or the model has no such parameters.
  """
  if choice not in CHOICES:
    raise registry.unknown('train.trainable', choice, CHOICES)
  if choice == 'all':
    return None
  mask = jax.tree_util.tree_map_with_path(
    lambda path, _: _chosen(_names(path), choice), tree
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
    return choice == 'moe'
  if choice == 'non_moe':
    return True
  if any(n.endswith('_norm') for n in names):
    return False
  own = {'attention': ('attention', 'cross'), 'ffn': ('ffn', 'extra')}
  return any(n in names for n in own.get(choice, ()))


def router_moves(block: Any) -> bool:
  """Whether the router of an MoE layer is trained, and with it the state.

  A router without parameters goes with the rest of its layer.

  Args:
    block: whether each leaf of the layer's block is trained; None is all.
  """
  if block is None:
    return True
  layer = block['moe']
  own = jax.tree.leaves(layer.get('router', {}))
  return any(own or jax.tree.leaves(layer))


def select(tree: Any, mask: Any) -> Any:
  """The trained leaves; in place of the others `optax.MaskedNode`, no leaf."""
  if mask is None:
    return tree
  return jax.tree.map(lambda m, v: v if m else optax.MaskedNode(), mask, tree)


def merge(own: Any, tree: Any, mask: Any) -> Any:
  """`tree` with the trained leaves of `own`; nothing flows into the others."""
  if mask is None:
    return own
  return jax.tree.map(
    lambda m, v, old: v if m else jax.lax.stop_gradient(old), mask, own, tree
  )


def size(params: Any, mask: Any) -> int:
  """How many parameters are trained."""
  return sum(math.prod(v.shape) for v in jax.tree.leaves(select(params, mask)))
