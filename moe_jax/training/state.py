"""What a training run carries from step to step, and where it lives."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import PartitionSpec as P

from moe_jax.layers import boxes
from moe_jax.parallel import rules
from moe_jax.planning import counts
from moe_jax.training import optimizers


@struct.dataclass
class TrainState:
  """A pytree of arrays, all on the mesh.

  Attributes:
    step: int32, optimizer steps done.
    params: float32 parameters.
    opt_state: of the optimizer.
    balance: state of the balancing rules, outside the optimizer.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  balance: Any


@dataclasses.dataclass(frozen=True)
class Layout:
  """Shapes and logical axes of a model's parameters, without memory.

  Attributes:
    params, balance: trees of ShapeDtypeStruct.
    axes: tree of logical axis tuples, as params.
  """

  params: Any
  balance: Any
  axes: Any

  def leaves(self) -> list[counts.Leaf]:
    """Parameters by path, for `planning.counts`."""
    paths = jax.tree_util.tree_leaves_with_path(self.params)
    axes = jax.tree.leaves(self.axes, is_leaf=rules.is_axes)
    return [
      counts.Leaf(jax.tree_util.keystr(p), v.shape, a)
      for (p, v), a in zip(paths, axes)
    ]

  def batch_dims(self) -> Any:
    """Tree of the number of leading layer and expert axes."""
    return jax.tree.map(
      lambda a: sum(n in ('layers', 'expert') for n in a),
      self.axes,
      is_leaf=rules.is_axes,
    )


def layout(model: nn.Module, batch) -> Layout:
  """Traces the model's initialiser on a batch of arrays or of their shapes."""
  boxed = jax.eval_shape(
    lambda key, batch: model.init(key, batch, train=False),
    jax.eval_shape(jax.random.key, 0),
    batch,
  )
  params = boxed['params']
  return Layout(
    nn.unbox(params), boxed.get('balance', {}), boxes.logical_axes(params)
  )


def specs(tx: optax.GradientTransformation, lay: Layout, mesh) -> TrainState:
  """PartitionSpecs of a TrainState."""
  params = rules.specs(lay.axes, lay.params, mesh.shape)
  opt_shapes = jax.eval_shape(tx.init, lay.params)
  opt = optimizers.state_specs(opt_shapes, lay.params, params, lay.batch_dims())
  balance = jax.tree.map(lambda _: P(), lay.balance)
  return TrainState(P(), params, opt, balance)


def abstract(tx, lay: Layout, mesh) -> TrainState:
  """ShapeDtypeStructs with shardings: what a checkpoint is restored to."""
  shapes = TrainState(
    jax.ShapeDtypeStruct((), jnp.int32),
    lay.params,
    jax.eval_shape(tx.init, lay.params),
    lay.balance,
  )
  where = rules.shardings(mesh, specs(tx, lay, mesh))
  return jax.tree.map(
    lambda v, s: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=s),
    shapes,
    where,
  )


def abstract_variables(lay: Layout, mesh) -> dict[str, Any]:
  """`abstract` without the optimizer: {'params': ..., 'balance': ...}."""
  state = abstract(optax.identity(), lay, mesh)
  return {'params': state.params, 'balance': state.balance}


def init(model, tx, batch, seed: int, shardings: TrainState) -> TrainState:
  """A fresh state, made on the mesh: no device ever holds it whole."""
  return initializer(model, tx, batch, shardings)(jax.random.key(seed))


def initializer(
  model, tx, batch, shardings: TrainState
) -> Callable[[jax.Array], TrainState]:
  """key -> a fresh state; compiles once for all keys."""

  def make(key):
    variables = nn.unbox(model.init(key, batch, train=False))
    params = variables['params']
    return TrainState(
      jnp.int32(0), params, tx.init(params), variables.get('balance', {})
    )

  return jax.jit(make, out_shardings=shardings)
