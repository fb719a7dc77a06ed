"""The experts of a model's MoE layers, taken by number.

Where a parameter, a balancing state or a moment of the optimizer has an axis of
experts is not written down anywhere: it is the axis that grows where the layer
has twice as many. What all experts share has none, and stays.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from moe_jax import registry
from moe_jax.conversion import rope, trees
from moe_jax.conversion.methods import base
from moe_jax.errors import UserError
from moe_jax.layers import moe
from moe_jax.planning import loads as loads_lib
from moe_jax.routers import base as routers

Axes = Mapping[str, int]


@functools.cache
def axes(layer: moe.MoE, D: int) -> Axes:
  """{'moe/router/kernel': 1}: the axis of experts of what has one.

  Args:
    layer: an MoE layer.
    D: model width.

  Raises:
    ValueError: a router without a part for each expert.
  """
  small, large = (
    _shapes(dataclasses.replace(layer, num_experts=n * layer.num_experts), D)
    for n in (1, 2)
  )
  name = routers.name(layer.router)
  found = {}
  for k, shape in small.items():
    own = [i for i, (a, b) in enumerate(zip(shape, large[k])) if a != b]
    if not own:
      continue
    valid = layer.num_experts, layer.num_routed
    if len(own) > 1 or shape[own[0]] not in valid:
      raise UserError(
        f'the router {name} has no part of {k} {shape} for each expert'
      )
    found[k] = own[0]
  routed = any(k.startswith('moe/router/') for k in found)
  if not routed and not layer.router.reads_experts:
    raise UserError(f'the router {name} has no row for each expert')
  if layer.router.init_carry(1, layer.num_routed) != ():
    raise UserError(
      f'the router {name} reads what that of the layer before it left, which '
      'has its experts in its own order'
    )
  return found


def layers(model: trees.Model) -> dict[int, moe.MoE]:
  """The MoE layers by number.

  Raises:
    ValueError: none, or some that share their experts.
  """
  config = model.config
  found = {
    i: layer.moe
    for i, layer in enumerate(model.records)
    if layer.moe is not None
  }
  if not found:
    raise UserError(f'moe.layers={config.moe.layers!r}: there are no experts')
  if config.moe.share_experts != 1:
    raise UserError(
      f'moe.share_experts={config.moe.share_experts}: layers share their '
      'experts, and so cannot be changed one by one'
    )
  if config.moe.decoder:
    raise UserError(
      f'moe.decoder={config.moe.decoder.to_dict()}: the MoE layers of the two '
      'stacks differ'
    )
  return found


def taken(
  model: trees.Model, index: Mapping[int, Sequence[int]]
) -> trees.Model:
  """With these experts in every MoE layer; its config is as it was.

  Args:
    model: any.
    index: by layer, numbers of experts in their new order; one may come twice.

  Raises:
    ValueError: a number that there is not; an anchor of the router that is not
      at its place; a moment of the optimizer whose axis of experts cannot be
      told.
  """
  found = layers(model)
  D = model.config.model.d_model
  for i, layer in found.items():
    wrong = [e for e in index[i] if not 0 <= e < layer.num_experts]
    if wrong:
      raise UserError(
        f'expert {wrong[0]}: valid are 0 to {layer.num_experts - 1}'
      )
    check_anchors(layer, index[i])

  def take(i, name, value):
    if i not in found:
      return value
    layer, shape = found[i], model.layers[i].get(name, value).shape
    axis = axes(layer, D).get(name)
    if axis is None:
      return value
    if value.ndim != len(shape):  # of a factored moment
      axis = _axis_of_moment(name, value.shape, shape, axis)
    if axis is None or value.shape[axis] == 1 != shape[axis]:
      return value
    local = range(layer.num_experts, value.shape[axis])
    return np.take(value, [*index[i], *local], axis)

  return trees.mapped(model, take)


def check_anchors(layer: moe.MoE, index: Sequence[int]) -> None:
  """Raises ValueError where an anchor of the router is not at its place."""
  for e in range(layer.router.anchors):
    if index[e] != e:
      raise UserError(
        f'expert {e} has to stay expert {e}: the router '
        f'{routers.name(layer.router)} measures the others by it'
      )


def kept(model: trees.Model, index: Mapping[int, Sequence[int]]) -> trees.Model:
  """`taken`, as many in each layer, and a config of as many experts."""
  return counted(taken(model, index), len(next(iter(index.values()))))


def counted(model: trees.Model, E: int, k: int = 0) -> trees.Model:
  """With a config of E experts, and k choices; 0 is as they were, at most E."""
  router = model.config.moe.router
  router = clipped(respec(router, k=k) if k else router, E)
  fields = {'moe.num_experts': E, 'moe.router': router}
  return model.replace(config=trees.with_fields(model.config, fields))


def averaged(
  model: trees.Model,
  groups: Mapping[int, Sequence[Sequence[int]]],
  weights: Mapping[int, np.ndarray],
) -> trees.Model:
  """With a group's weighted average for its experts; no optimizer's state.

  Args:
    model: whose config stays as it was.
    groups: by layer, numbers of experts.
    weights: by layer, of each expert.
  """
  found, D = layers(model), model.config.model.d_model

  def mean(i, name, value):
    axis = axes(found[i], D).get(name) if i in found else None
    if axis is None:
      return value
    own = np.moveaxis(value, axis, 0)
    new = [base.mean(list(own[g]), weights[i][g]) for g in groups[i]]
    return np.moveaxis(np.stack([*new, *own[found[i].num_experts :]]), 0, axis)

  return trees.mapped(model.replace(moments=None, counts={}), mean)


def loads(path: str, layers: int, E: int) -> np.ndarray:
  """f64 [MoE layers, E] as `planning.loads.read` has them.

  Raises:
    ValueError: of another model, or none.
  """
  try:
    found = loads_lib.read(path)
  except OSError as e:
    raise UserError(f'loads={path!r}: {e.strerror}') from None
  if found.shape != (layers, E):
    raise UserError(
      f'loads={path!r} are of {found.shape[0]} layers and {found.shape[1]} '
      f'experts; the model has {layers} and {E}'
    )
  return found


def _axis_of_moment(name, shape, of, axis) -> int | None:
  """Of sums over an axis of a parameter; None where it was that of experts."""
  if axis == 0:
    return 0
  same = [i for i, n in enumerate(shape) if n == of[axis]]
  others = [n for i, n in enumerate(of) if n == of[axis] and i != axis]
  if same and others:
    raise UserError(
      f'the optimizer has {shape} of {name} {of}: which axis is of experts '
      'cannot be told; optimizer=False leaves its state out'
    )
  return same[0] if same else None


def respec(spec: str, **changes: Any) -> str:
  """A call string with other arguments."""
  name, given = registry.parse(spec)
  return rope.call(name, **(given | changes))


def clipped(spec: str, E: int) -> str:
  """A router's call string with at most E choices."""
  router = registry.build('routers', spec)
  if not isinstance(router, routers.Choosing) or router.k <= E:
    return spec
  # Of one expert the share is 1 either way.
  changes = {'k': E} | ({'renormalize': False} if E == 1 else {})
  return respec(spec, **changes)


def choices(spec: str, times: int) -> str:
  """A router's call string with `times` as many choices.

  Raises:
    ValueError: one whose number of choices is no field.
  """
  router = registry.build('routers', spec)
  fields = {f.name for f in dataclasses.fields(router)}
  if times == 1:
    return spec
  if not isinstance(router, routers.Choosing) or 'k' not in fields:
    raise UserError(
      f'the router {routers.name(router)} has no k to be made {times} times as '
      "large; as router='top_k(k=2, renormalize=False)' another can be given"
    )
  return respec(spec, k=times * router.k)


def _shapes(layer: moe.MoE, D: int) -> dict[str, tuple[int, ...]]:
  """Of parameters and states, by name inside the block."""
  made: Callable[[], Any] = lambda: (
    layer.init(jax.random.key(0), D),
    {'state': layer.init_state()},
  )
  flat: dict[str, Any] = {}
  for tree in jax.eval_shape(made):
    flat |= traverse_util.flatten_dict(tree, sep='/')
  return {f'moe/{k}': v.shape for k, v in flat.items() if hasattr(v, 'shape')}
