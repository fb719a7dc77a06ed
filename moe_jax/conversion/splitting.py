"""Every expert becomes several: whole copies, or slices of its hidden width."""

import dataclasses
from typing import Any

import numpy as np

from moe_jax import registry
from moe_jax.conversion import experts, probing, rope, trees
from moe_jax.errors import UserError
from moe_jax.experts import base as experts_base

_EXPERTS, _STATE = 'moe/experts/', 'moe/state/'


def all_experts(
  model: trees.Model, times: int, sliced: bool, router: str = ''
) -> trees.Model:
  """A model of `times` as many experts, and choices, that computes the same.

  Rows of the router are copied, and so are biases of the selection: divided by
  `times` where affinities are (a softmax's), or they would weigh more. Each
  expert's are next to each other, so that blocks of experts stay blocks. The
  optimizer's state is left out.

  Args:
    model: sparse.
    times: of each expert.
    sliced: whether they are slices of its hidden width, or copies.
    router: call string of the new one; '' is the old with more choices.

  Raises:
    ValueError: a router whose weights do not allow it; experts that are no sum
      over slices, or a hidden width that `times` does not divide.
  """
  if times < 1:
    raise UserError(f'{times} parts of an expert: valid from 1')
  found, config = experts.layers(model), model.config
  layer, D = next(iter(found.values())), config.model.d_model
  spec = router or experts.choices(config.moe.router, times)
  fields: dict[str, Any] = {
    'moe.num_experts': times * layer.num_experts,
    'moe.router': spec,
  }
  if sliced:
    fields |= hidden(config.moe.experts, layer.experts.d_ff, times)
    probing.splits(
      layer.experts,
      lambda params, n: slices(layer.experts, params, n),
      *(D, times),
    )
  made = dataclasses.replace(
    layer,
    num_experts=times * layer.num_experts,
    router=registry.build('routers', spec),
  )
  small = experts.axes(layer, probing.WIDTH)
  much = probing.copies(layer, made, small, times)
  of_experts = experts.axes(layer, D)
  index = np.repeat(np.arange(layer.num_experts), times)
  bare = model.replace(moments=None, counts={})
  more = experts.taken(bare, dict.fromkeys(found, index))

  def change(i, name, value):
    if i not in found or name not in of_experts:
      return value
    if name.startswith(_STATE):
      return value / value.dtype.type(much.bias)
    return value

  more = trees.mapped(more, change)
  layers = list(map(dict, more.layers))
  for i in found:
    own = {
      k.removeprefix(_EXPERTS): v
      for k, v in model.layers[i].items()
      if k.startswith(_EXPERTS)
    }
    if sliced:
      own = slices(layer.experts, own, times, much.output)
    else:
      own = copies(layer.experts, own, times, much.output / times)
    layers[i] |= {_EXPERTS + k: v for k, v in own.items()}
  return more.replace(
    config=trees.with_fields(config, fields), layers=tuple(layers)
  )


def hidden(spec: str, d_ff: int, times: int) -> dict[str, Any]:
  """The fields of experts of this kind, with a `times`th of the width."""
  name, given = registry.parse(spec)
  given.pop('d_ff', None)
  if d_ff % times:
    raise UserError(f'd_ff={d_ff}: {times} slices do not divide it')
  return {'moe.experts': rope.call(name, **given), 'moe.d_ff': d_ff // times}


def slices(
  kind: experts_base.Experts, params: trees.Arrays, times: int, output=1.0
) -> trees.Arrays:
  """Experts [E, ...] as slices [E times, ...], those of one behind each other.

  Args:
    kind: of the experts.
    params: of them all.
    times: slices of each.
    output: the last matrix is multiplied by it; an output bias, which all
      slices have, by a `times`th of it.

  Raises:
    ValueError: all experts share a matrix over the hidden width.
  """
  out = {}
  for k, v in params.items():
    stacked = experts_base.is_stacked(kind.axes[k])
    if stacked and 'mlp' in kind.axes[k]:
      axis, E = kind.axes[k].index('mlp'), len(v)
      parts = np.stack(np.split(v, times, axis), 1)
      out[k] = parts.reshape(E * times, *parts.shape[2:])
    elif stacked:
      out[k] = np.repeat(v, times, 0)
    elif 'mlp' in kind.axes[k]:
      raise UserError(
        f'all experts share {k}, which lies over the hidden width: they cannot '
        'be sliced one by one'
      )
    else:
      out[k] = v
    factor = {'matrix': output, 'bias': output / times}.get(_last(kind, k))
    if factor is not None:
      out[k] = out[k] * v.dtype.type(factor)
  return out


def copies(
  kind: experts_base.Experts, params: trees.Arrays, times: int, output: float
) -> trees.Arrays:
  """Experts [E, ...] as copies [E times, ...], outputs times `output`."""
  out = {}
  for k, v in params.items():
    stacked = experts_base.is_stacked(kind.axes[k])
    out[k] = np.repeat(v, times, 0) if stacked else v
    if output != 1 and not stacked:
      raise UserError(f'all experts share {k}: their outputs cannot be scaled')
    if _last(kind, k):
      out[k] = out[k] * v.dtype.type(output)
  return out


def _last(kind: experts_base.Experts, name: str) -> str:
  """Whether a parameter is the last 'matrix', or the 'bias' behind it."""
  own = kind.axes[name][experts_base.is_stacked(kind.axes[name]) :]
  if len(own) > 1 and own[0] == 'mlp' and own[-1] == 'embed':
    return 'matrix'
  return 'bias' if own == (None,) else ''
