"""The MoE layers of a model: their experts' parameters, and their input."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P

from moe_jax.dispatch import base as dispatching
from moe_jax.layers import linen, moe
from moe_jax.models import records, stack


@dataclasses.dataclass(frozen=True)
class Place:
  """An MoE layer.

  Attributes:
    stack: its name in `model.stacks`.
    layer: its number there.
    moe: the layer.
    state: path of its module in the variables, from the stack's name.
    experts: path of its experts' parameters, which others may share.
    repeat: the entry of the leading axis of both, or None where there is none.
  """

  stack: str
  layer: int
  moe: moe.MoE
  state: tuple[str, ...]
  experts: tuple[str, ...]
  repeat: int | None

  @property
  def name(self) -> str:
    """'decoder/3'."""
    return f'{self.stack}/{self.layer}'

  def of(self, params: Any) -> dict[str, jax.Array]:
    """Its experts' parameters, of those of the model."""
    for k in self.experts:
      params = params[k]
    return params if self.repeat is None else jax.tree.map(self._own, params)

  def _own(self, v):
    return v[self.repeat]


def places(model: Any) -> list[Place]:
  """All MoE layers, the encoder's first."""
  return [
    _place(name, config, layer)
    for name, config in model.stacks.items()
    for layer, sparse in enumerate(config.sparse)
    if sparse
  ]


def _place(name: str, config: records.StackConfig, layer: int) -> Place:
  sparse = [i for i, is_sparse in enumerate(config.sparse) if is_sparse]
  first = layer
  while config.layers[first].takes_experts:
    first = sparse[sparse.index(first) - 1]
  behind = sparse[sparse.index(first) + 1 :]
  module, block, repeat = config.places[layer]
  at = (name, module) if block is None else (name, module, block)
  experts = (*at, 'moe', 'experts')
  if behind and config.layers[behind[0]].takes_experts:
    *outer, own = (v for v in config.places[first][:2] if v is not None)
    part, _, number = own.rpartition('_')
    pool = f'pool_{number}' if block else f'{part}_pool_{number}'
    experts = (name, *outer, pool, 'experts')
  repeat = None if block is None else repeat
  return Place(name, layer, config.layers[layer].moe, at, experts, repeat)


def everywhere(model: Any) -> NamedSharding | None:
  """All of an array on every device, for a result that the host reads."""
  meshes = [c.mesh for c in model.stacks.values() if c.mesh is not None]
  return NamedSharding(meshes[0], P()) if meshes else None


def changed(model: Any, change: Callable[[moe.MoE], moe.MoE]) -> Any:
  """The model with every MoE layer changed; parameters stay as they are."""
  new = {}
  for f in dataclasses.fields(model):
    value = getattr(model, f.name)
    if isinstance(value, records.StackConfig):
      new[f.name] = value.with_moe(change)
  return model.clone(**new)


def fed(model: Any, variables: dict[str, Any], batch: Any) -> list[jax.Array]:
  """What each of `places` is given, [B, L, D], in evaluation; and its aux.

  To be jitted. `Place.moe.record` says what is in the aux beside sums.

  Returns:
    (x_BLD, MoEAux) by place.
  """

  def tap(call, args, kwargs, context):
    out = call(*args, **kwargs)
    mine = isinstance(context.module, linen.MoE)
    if not mine or context.method_name != '__call__':
      return out
    y, carry, aux = out
    return y, carry, aux.replace(record=aux.record | {'input': args[0]})

  with nn.intercept_methods(tap):
    rngs = {'router': jax.random.key(0)}
    _, aux = model.apply(variables, batch, train=False, rngs=rngs)
  found = [
    a
    for name, config in model.stacks.items()
    for _, a in stack.aux_by_layer(aux[name], config.places)
  ]
  return [(a.record['input'], a) for a in found]


def dense(layer: moe.MoE, w_experts: Any, x_TD: jax.Array) -> jax.Array:
  """f32 [E, T, D]: what every expert makes of every token, unweighted.

  Args:
    layer: experts without parameters are not among the E.
    w_experts: `Place.of` the model's parameters.
    x_TD: tokens as the layer is fed them.
  """
  E, T = layer.num_experts, x_TD.shape[0]
  rows = jnp.broadcast_to(x_TD.astype(jnp.float32), (E, *x_TD.shape))
  ops = dispatching.buffer_ops(T, (), E=E)
  return layer.experts(w_experts, rows, ops).astype(jnp.float32)
