"""What a router and an expert kind do, seen by trying: numbers, not names.

A surgeon wants to know whether routers keep their weights where experts change
places, and what is left of a weight where an expert becomes several. Some
hundred random tokens say it of any router.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from moe_jax import types
from moe_jax.errors import UserError
from moe_jax.experts import base as experts_base
from moe_jax.layers import mlp, moe
from moe_jax.routers import base as routers

WIDTH = 16  # of the model that is tried
_T, _BIAS = 256, 0.1
Take = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Copies:
  """Of an expert that has become `times` experts with its row.

  Attributes:
    output: what the last matrix is multiplied by, so that all of them together
      give what it gave.
    bias: what a selection bias is divided by.
  """

  output: float
  bias: float


def permutes(layer: moe.MoE, axes, order: list[int]) -> None:
  """Raises ValueError where weights do not follow experts that are moved."""
  E = layer.num_experts
  all_ = [*order, *range(E, layer.num_routed)]
  params, bias_E = _drawn(layer)
  old_TE = _weights(layer, params, bias_E)
  moved = {k: _along(v, axes.get(k), all_) for k, v in params.items()}
  new_TE = _weights(layer, moved, bias_E[all_])
  if not np.allclose(new_TE, old_TE[:, all_], rtol=1e-4, atol=1e-6):
    raise UserError(
      f'the router {routers.name(layer.router)} chooses others where its '
      f'experts are in the order {tuple(order)}'
    )


def copies(layer: moe.MoE, new: moe.MoE, axes, times: int) -> Copies:
  """How to make an expert several, next to each other, and change nothing.

  Args:
    layer: of E experts.
    new: of `times` as many.
    axes: `experts.axes` of both.
    times: copies of each row.

  Raises:
    ValueError: a router of another kind.
  """
  E = layer.num_experts
  all_ = [*np.repeat(np.arange(E), times), *range(E, layer.num_routed)]
  params, bias_E = _drawn(layer)
  old_TE = _weights(layer, params, bias_E)[:, :E]
  more = {k: _along(v, axes.get(k), all_) for k, v in params.items()}
  for divisor in (1, times):
    new_TE = _weights(new, more, bias_E[all_] / divisor)[:, : E * times]
    new_TES = new_TE.reshape(_T, E, times)
    total = new_TES.sum() / old_TE.sum()
    even_TES = total * old_TE[..., None] / times
    if total and np.allclose(new_TES, even_TES, rtol=1e-4, atol=1e-6):
      return Copies(float(_whole(times / total)), divisor)
  raise UserError(
    f'the router {routers.name(layer.router)} does not give {times} copies of '
    'an expert what it gave the one'
  )


def splits(kind: experts_base.Experts, parts, D: int, times: int) -> None:
  """Raises ValueError where an expert is not the sum of its slices.

  Args:
    kind: of the experts.
    parts: (params of one expert, times) -> those of the slices, stacked.
    D: model width.
    times: slices.
  """
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(lambda: kind.init(jax.random.key(0), 1, D))
  params = {
    k: rng.standard_normal(v.shape).astype(np.float32)
    for k, v in shapes.items()
  }
  x_1TD = rng.standard_normal((1, 16, D)).astype(np.float32)
  stacked = lambda k: experts_base.is_stacked(kind.axes[k])

  def run(p, e):
    own = {k: v[e] if stacked(k) else v for k, v in p.items()}
    return np.asarray(mlp.FFN(kind)(own, x_1TD, train=False))

  small = parts(params, times)
  whole = run(params, 0)
  total = sum(run(small, e) for e in range(times))
  if not np.allclose(total, whole, rtol=1e-3, atol=1e-3):
    raise UserError(
      f'experts {type(kind).__name__}: they are no sum over slices of their '
      'hidden width'
    )


@functools.partial(jax.jit, static_argnums=0)
def _route(router, params, x_TD, ctx):
  return router(params, x_TD, ctx)


def _whole(value):
  """1.9999999 is 2: what weights show is rounded."""
  near = round(float(value), 3)
  return near if abs(near - value) < 1e-4 else value


def _along(value, axis, index):
  """Some of them; what computes nothing that is sent has no weights."""
  if axis is None:
    return value
  return np.take(value, [e for e in index if e < value.shape[axis]], axis)


def _drawn(layer: moe.MoE):
  """(random parameters of router and experts by name, random biases)."""
  rng = np.random.default_rng(0)
  made = lambda: {
    'router': layer.router.init(jax.random.key(0), layer.num_routed, WIDTH),
    'experts': layer.experts.init(jax.random.key(0), layer.num_experts, WIDTH),
  }
  params = {}
  for group, own in jax.eval_shape(made).items():
    for path, v in jax.tree_util.tree_leaves_with_path(own):
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      drawn = rng.standard_normal(v.shape) * WIDTH**-0.5
      params[f'moe/{group}/{name}'] = drawn.astype(np.float32)
  bias_E = _BIAS * rng.standard_normal(layer.num_routed)
  return params, bias_E.astype(np.float32)


def _weights(layer: moe.MoE, params, bias_E) -> np.ndarray:
  """f64 [T, E], the combine weights of random tokens in evaluation."""
  tree = traverse_util.unflatten_dict(dict(params), sep='/')['moe']
  of = lambda group: tree.get(group, {})
  x_TD = (
    np.random.default_rng(1).standard_normal((_T, WIDTH)).astype(np.float32)
  )
  features = {}
  if layer.router.reads_experts:
    features = layer.experts.routing_features(of('experts'), lambda v: v)
  ctx = types.Context(
    key=None,
    mask_T=jnp.ones(_T, bool),
    selection_bias_E=jnp.asarray(bias_E),
    ids_T=jnp.arange(_T) % 7,
    positions_T=jnp.arange(_T),
    segments_T=jnp.ones(_T, jnp.int32),
    step=jnp.int32(0),
    layer=jnp.int32(0),
    features=features,
    num_local=layer.num_local,
  )
  r = _route(layer.router, of('router'), x_TD, ctx)
  found_TE = np.zeros((_T, len(bias_E) + 1))
  np.add.at(
    found_TE, (np.asarray(r.token_N), np.asarray(r.expert_N)), r.weight_N
  )
  return found_TE[:, :-1]
