"""A sparse model of dense FFNs: what upcycling and mixing have in common."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from moe_jax import registry
from moe_jax.conversion import experts, rope, trees
from moe_jax.conversion.methods import base
from moe_jax.errors import UserError
from moe_jax.experts import base as experts_base
from moe_jax.routers import base as routers

_FFN, _NORM = 'ffn/ffn/', 'ffn_norm/'


def of_dense(
  key: jax.Array,
  model: trees.Model,
  make: Callable[[int], trees.Arrays],
  *,
  num_experts: int,
  router: str,
  layers: str,
  d_ff: int = 0,
  rows: str = '',
  balance: tuple[str, ...] | None = None,
) -> trees.Model:
  """The model with experts in place of some FFNs; dropless.

  Args:
    key: of the routers.
    model: dense; everything but these FFNs is as in it.
    make: layer -> its experts' parameters, [E, ...].
    num_experts: E.
    router: its call string; choices above E are cut.
    layers: `moe.layers`.
    d_ff: of an expert; 0 is the FFN's.
    rows: .npy file of the routers' rows [E, D], the same in all layers; ''
      draws them.
    balance: `moe.balance`; None leaves the config's.

  Raises:
    ValueError: a router that starts at zero, or has no such rows.
  """
  config, D = model.config, model.config.model.d_model
  name, given = registry.parse(config.model.ffn)
  width = given.pop('d_ff', config.model.d_ff)
  fields = {
    'moe.layers': layers,
    'moe.num_experts': num_experts,
    'moe.router': experts.clipped(router, num_experts),
    'moe.experts': rope.call(name, **given),
    'moe.d_ff': d_ff or width,
    'moe.dispatch': 'gather_reduce()',
    'moe.group_size': config.data.seq_len,
    'moe.capacity_factor': 0.0,
    'moe.eval_capacity_factor': 0.0,
    'moe.share_experts': 1,
    'moe.extra_ffn': 'none',
    'moe.dense_branch': 'none',
    'moe.local_experts': (),
  }
  if balance is not None:
    fields['moe.balance'] = balance
  made = base.changed(model, fields)
  new, states = list(map(dict, model.layers)), list(model.balance)
  for i, layer in experts.layers(made).items():
    own = {_renamed(k): v for k, v in new[i].items() if not k.startswith(_FFN)}
    own |= {f'moe/experts/{k}': v for k, v in make(i).items()}
    drawn = layer.router.init(jax.random.fold_in(key, i), layer.num_routed, D)
    if rows:
      drawn = _with_rows(layer.router, drawn, base.rows(rows, num_experts, D))
    _check_parted(layer.router, drawn)
    own |= _flat('moe/router', drawn)
    new[i], states[i] = own, _flat('moe/state', layer.init_state())
  return made.replace(layers=tuple(new), balance=tuple(states))


def moments(
  model: trees.Model, made: trees.Model, times: int
) -> Mapping[str, trees.Leaves]:
  """The optimizer's state of a dense model, for `times` copies of its FFNs."""
  found = {}
  for tree, leaves in (model.moments or {}).items():
    layers = []
    for i, sparse in enumerate(made.sparse):
      own = leaves.layers[i]
      if sparse:
        one = lambda k, v: np.stack([v] * times) if k.startswith(_FFN) else v
        own = {_renamed(k): one(k, v) for k, v in own.items()}
      layers.append(own)
    found[tree] = trees.Leaves(leaves.rest, tuple(layers))
  return found


def ffn(model: trees.Model, i: int) -> trees.Arrays:
  """The dense FFN's parameters of a layer, {'wi': [D, F]}."""
  layer = model.layers[i].items()
  return {k.removeprefix(_FFN): v for k, v in layer if k.startswith(_FFN)}


def stacked(
  kind: experts_base.Experts, parts: list[trees.Arrays]
) -> trees.Arrays:
  """FFNs as experts [E, ...]; what experts share once.

  Raises:
    ValueError: it differs.
  """
  out = {}
  for k, axes in kind.axes.items():
    own = [p[k] for p in parts]
    if experts_base.is_stacked(axes):
      out[k] = np.stack(own)
    elif any(v.tobytes() != own[0].tobytes() for v in own):
      raise UserError(f'all experts share {k}, and the models differ in it')
    else:
      out[k] = own[0]
  return out


def _renamed(name: str) -> str:
  if name.startswith(_FFN):
    return f'moe/experts/{name.removeprefix(_FFN)}'
  return name.replace(_NORM, 'moe_norm/') if name.startswith(_NORM) else name


def _flat(prefix: str, tree: Any) -> trees.Arrays:
  flat = traverse_util.flatten_dict({prefix: jax.device_get(tree)}, sep='/')
  return {k: np.asarray(v) for k, v in flat.items() if v is not None}


def _with_rows(router, drawn, rows_ED):
  if not router.has_matrix:
    raise UserError(
      f'the router {routers.name(router)} has no rows to be given'
    )
  return drawn | {'kernel': rows_ED.T}


def _check_parted(router, params) -> None:
  """Equal experts and equal rows would never part."""
  if router.has_matrix and not np.any(params['kernel']):
    raise UserError(
      f'the router {routers.name(router)} starts at zero: all tokens would '
      'choose the same experts; another one, or rows, are wanted'
    )
