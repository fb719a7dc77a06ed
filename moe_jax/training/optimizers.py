"""Optimizers and learning-rate schedules, by call string, on stacked weights.

A parameter's leading layer and expert axes are batch axes: `[L, E, D, F]` is
L * E matrices. `batch_dims` says how many a leaf has, and an optimizer treats
every slice as a parameter of its own.

Steps count from 0: the first update uses `schedule(0)`, and a linear warm-up
multiplies by `(step + 1) / warmup`, so that no update is lost. Optax does all
but the slicing; its state is optax's.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from moe_jax import registry
from moe_jax.errors import UserError

Schedule = Callable[[Any], jax.Array]


def make(
  optimizer: str, schedule: str, *, steps: int, clip: float, batch_dims: Any
) -> tuple[optax.GradientTransformation, Schedule]:
  """Builds the gradient transformation of a run.

  Args:
    optimizer: 'adafactor(...)', 'adamw(...)' or 'sgd(...)'.
    schedule: 'rsqrt(...)', 'cosine(...)' or 'constant(...)'.
    steps: updates of the whole run.
    clip: largest global L2 norm of the gradients, before the optimizer; 0 is
      off.
    batch_dims: pytree like the parameters; how many leading axes are batch.

  Returns:
    (transformation whose updates are added to the parameters, schedule: step
    counted from 0 -> learning rate, float32)

  Raises:
    ValueError: unknown name or argument, or a value out of range.
  """
  _want(steps >= 1, 'steps', steps, 'at least 1')
  _want(clip >= 0, 'clip', clip, 'a norm, or 0 for none')
  rate = registry.call(schedule, SCHEDULES, 'schedule')(steps)
  tx = registry.call(optimizer, OPTIMIZERS, 'optimizer')(rate, batch_dims)
  if clip:
    tx = optax.chain(optax.clip_by_global_norm(clip), tx)
  return tx, rate


def state_specs(
  tx_state_shapes: Any, params_shapes: Any, param_specs: Any, batch_dims: Any
) -> Any:
  """Where the optimizer's state lives: beside the parameters.

  A leaf whose path in the tree ends with a parameter's path (the longest such)
  gets the parameter's spec if their shapes are equal, and else, as a factored
  moment, the spec of the leading batch axes alone. Scalars are replicated.

  Args:
    tx_state_shapes: `jax.eval_shape(tx.init, params)`.
    params_shapes: pytree of arrays or ShapeDtypeStructs.
    param_specs: pytree like it, of jax.sharding.PartitionSpec.
    batch_dims: as in `make`.

  Returns:
    Pytree of PartitionSpec, like the state.

  Raises:
    ValueError: a leaf that is no scalar and belongs to no parameter.
  """
  flat, treedef = jax.tree_util.tree_flatten_with_path(params_shapes)
  params = {
    tuple(map(str, path)): (leaf.shape, spec, n)
    for (path, leaf), spec, n in zip(
      flat,
      treedef.flatten_up_to(param_specs),
      treedef.flatten_up_to(batch_dims),
    )
  }

  def one(path, leaf):
    if leaf.ndim == 0:
      return P()
    keys = tuple(map(str, path))
    for i in range(len(keys) + 1):
      if keys[i:] in params:
        shape, spec, n = params[keys[i:]]
        if leaf.shape == shape:
          return spec
        if leaf.shape[:n] == shape[:n]:
          return P(*spec[:n])
    raise UserError(
      f'optimizer state {jax.tree_util.keystr(path)} {leaf.shape} is no scalar'
      f" and no parameter's; parameters: {', '.join(map(''.join, params))}"
    )

  return jax.tree_util.tree_map_with_path(one, tx_state_shapes)


def rsqrt(
  peak: float, warmup: int, linear: bool = False
) -> Callable[[int], Schedule]:
  """`peak * sqrt(warmup / max(step, warmup))`: T5's (arXiv 1910.10683, 3.1.2).

  T5 and Switch hold the rate at `peak` for `warmup` steps (T5X's constant *
  rsqrt_decay with base 1 is peak = 0.01, warmup = 10000); linear=True rises to
  it instead.
  """
  _check_rate('rsqrt', peak, warmup)

  def rate(step):
    decay = jnp.sqrt(max(warmup, 1) / jnp.maximum(step, max(warmup, 1)))
    rise = _rise(step, warmup) if linear else 1.0
    return jnp.float32(peak) * rise * decay

  return lambda steps: rate


def cosine(
  peak: float, warmup: int, final: float = 0.0
) -> Callable[[int], Schedule]:
  """Linear warm-up to `peak`, then half a cosine to `final` at step `steps`.

  Loshchilov & Hutter 2017 (arXiv 1608.03983), equation 5, without restarts.
  The last update, `steps - 1`, is a hair above `final`. A run that is shorter
  than its warm-up ends in it.
  """
  _check_rate('cosine', peak, warmup)
  _want(0 <= final <= peak, 'cosine: final', final, f'from 0 to peak ({peak})')

  def build(steps):
    span = max(steps - warmup, 1)

    def rate(step):
      done = jnp.clip((step - warmup) / span, 0.0, 1.0)
      fall = (1 + jnp.cos(math.pi * done)) / 2
      return (final + (peak - final) * fall) * _rise(step, warmup)

    return rate

  return build


def constant(value: float, warmup: int = 0) -> Callable[[int], Schedule]:
  """`value`, after a linear warm-up."""
  _check_rate('constant', value, warmup, 'value')

  def rate(step):
    return jnp.float32(value) * _rise(step, warmup)

  return lambda steps: rate


def adafactor(
  decay: float = 0.8,
  eps1: float = 1e-30,
  eps2: float = 1e-3,
  rms_clip: float = 1.0,
  scale: bool = True,
  min_dim: int = 128,
  momentum: float = 0.0,
) -> Callable[[Schedule, Any], optax.GradientTransformation]:
  """Adafactor as T5 uses it, for each layer and expert alone.

  Shazeer & Stern 2018 (arXiv 1804.04235), algorithms 4 to 6, with an external
  learning rate. Optax factors over the two largest axes of a leaf, which may be
  the experts'; here its transforms are vmapped over the batch axes. Hence the
  RMS clip, the parameter scale and the factoring are per layer and per expert:
  no expert's update depends on another's gradient.

  Args:
    decay: exponent c of beta2 = 1 - t^-c, t counted from 1.
    eps1: added to squared gradients.
    eps2: least RMS of a parameter in its scale.
    rms_clip: largest RMS of a slice's update, before the learning rate.
    scale: multiply updates by max(eps2, RMS of the slice).
    min_dim: slices whose two largest axes have this size are factored, over
      those; others keep full second moments.
    momentum: decay of an average of the updates; 0 is none, and no memory.
  """
  name = 'adafactor'
  _want(decay > 0, f'{name}: decay', decay, 'above 0')
  _want(eps1 > 0, f'{name}: eps1', eps1, 'above 0')
  _want(eps2 > 0, f'{name}: eps2', eps2, 'above 0')
  _want(rms_clip > 0, f'{name}: rms_clip', rms_clip, 'above 0')
  _want(min_dim >= 1, f'{name}: min_dim', min_dim, 'at least 1')
  _check_decay(name, 'momentum', momentum)
  moments = optax.scale_by_factored_rms(
    decay_rate=decay, min_dim_size_to_factor=min_dim, epsilon=eps1
  )
  finish = optax.clip_by_block_rms(rms_clip)
  if scale:
    finish = optax.chain(finish, optax.scale_by_param_block_rms(eps2))

  def build(rate, batch_dims):
    parts = [
      _per_slice(moments, finish, batch_dims),
      optax.scale_by_learning_rate(rate),
    ]
    if momentum:
      parts.append(optax.ema(momentum, debias=False))
    return optax.chain(*parts)

  return build


def adamw(
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float = 0.0,
) -> Callable[[Schedule, Any], optax.GradientTransformation]:
  """AdamW: Loshchilov & Hutter 2019 (arXiv 1711.05101), algorithm 2.

  Weights decay by learning rate * weight_decay, where a leaf has at least two
  axes besides the batch axes: no scales, no biases.
  """
  _check_decay('adamw', 'b1', b1)
  _check_decay('adamw', 'b2', b2)
  _want(eps > 0, 'adamw: eps', eps, 'above 0')
  _want(weight_decay >= 0, 'adamw: weight_decay', weight_decay, 'at least 0')

  def build(rate, batch_dims):
    def decays(params):
      return jax.tree.map(lambda p, n: p.ndim - n >= 2, params, batch_dims)

    return optax.adamw(
      rate, b1, b2, eps, weight_decay=weight_decay, mask=decays
    )

  return build


def sgd(
  momentum: float = 0.0,
) -> Callable[[Schedule, Any], optax.GradientTransformation]:
  """Gradient descent; with heavy-ball momentum where it is above 0."""
  _check_decay('sgd', 'momentum', momentum)
  return lambda rate, batch_dims: optax.sgd(rate, momentum or None)


SCHEDULES = {'rsqrt': rsqrt, 'cosine': cosine, 'constant': constant}
OPTIMIZERS = {'adafactor': adafactor, 'adamw': adamw, 'sgd': sgd}


def _per_slice(
  moments: optax.GradientTransformation,
  finish: optax.GradientTransformation,
  batch_dims: Any,
) -> optax.GradientTransformation:
  """`moments`, then the stateless `finish`, on every slice of every leaf.

  The state is one optax.FactoredState over the parameters' tree, its moments
  with the batch axes in front and one count.
  """
  axes = optax.FactoredState(count=None, v_row=0, v_col=0, v=0)

  def lift(fn, n, in_axes, out_axes):
    for _ in range(n):
      fn = jax.vmap(fn, in_axes=in_axes, out_axes=out_axes)
    return fn

  def collect(treedef, states):
    trees = (treedef.unflatten(x) for x in zip(*(s[1:] for s in states)))
    return optax.FactoredState(states[0].count, *trees)

  def init(params):
    leaves, treedef = jax.tree.flatten(params)
    ns = treedef.flatten_up_to(batch_dims)
    states = [lift(moments.init, n, 0, axes)(p) for p, n in zip(leaves, ns)]
    return collect(treedef, states)

  def step(grad, state, param):
    update, state = moments.update(grad, state, param)
    update, _ = finish.update(update, finish.init(param), param)
    return update, state

  def update(grads, state, params):
    leaves, treedef = jax.tree.flatten(grads)
    ns = treedef.flatten_up_to(batch_dims)
    trees = [treedef.flatten_up_to(x) for x in (*state[1:], params)]
    results = [
      lift(step, n, (0, axes, 0), (0, axes))(
        g, optax.FactoredState(state.count, *moment), p
      )
      for g, n, *moment, p in zip(leaves, ns, *trees)
    ]
    updates, states = zip(*results)
    return treedef.unflatten(updates), collect(treedef, states)

  return optax.GradientTransformation(init, update)


def _rise(step: Any, warmup: int) -> jax.Array:
  return jnp.minimum(1.0, (step + 1) / max(warmup, 1))


def _check_rate(name: str, value: float, warmup: int, what='peak') -> None:
  _want(value > 0, f'{name}: {what}', value, 'a learning rate above 0')
  _want(warmup >= 0, f'{name}: warmup', warmup, 'a number of steps')


def _check_decay(name: str, what: str, value: float) -> None:
  _want(0 <= value < 1, f'{name}: {what}', value, 'from 0 to below 1')


def _want(ok: bool, what: str, value: Any, wanted: str) -> None:
  if not ok:
    raise UserError(f'{what} is {value}; wanted: {wanted}')
