"""What makes a model of others: a pure function of trees."""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from moe_jax import npy_files
from moe_jax.conversion import trees
from moe_jax.errors import UserError


class Method(abc.ABC):
  """Makes a model of one or several; concrete ones are frozen dataclasses.

  Attributes:
    sources: the least number of models, and the most; None is no limit.
    related: whether they must have an ancestor in common, since averages of
      weights mean nothing where units have other places.
    optimizer: whether the optimizer's state is wanted, too.
  """

  sources: tuple[int, int | None] = (1, 1)
  related = False
  optimizer = False

  @abc.abstractmethod
  def __call__(self, key: jax.Array, *models: trees.Model) -> trees.Model:
    """The model that is made.

    Args:
      key: of what is drawn.
      *models: as many as `sources` allows; none of them is changed.

    Raises:
      ValueError: one line: a model that has not what is wanted of it.
    """


# What may differ in models that are put together: how they are computed and
# trained, not what they are.
_FREE = frozenset(
  """model.dtype model.scan model.remat model.dropout model.init_scale
  moe.dispatch moe.group_size moe.capacity_rule moe.capacity_factor
  moe.eval_capacity_factor moe.seating moe.allow_noncausal moe.balance
  moe.identical_experts""".split()
)


def check_alike(models: Sequence[trees.Model]) -> None:
  """Raises ValueError where models differ in kind or in shapes."""
  first, *others = models
  for n, other in enumerate(others, 1):
    for of in (_layers, _described, _shapes):
      there, here = of(first), of(other)
      for name in sorted(there.keys() | here.keys()):
        a, b = (repr(d.get(name)) for d in (there, here))
        if a != b:
          raise UserError(
            f'{name} is {a} in the first model, {b} in number {n}'
          )


def check_dense(models: Sequence[trees.Model], method: str) -> None:
  """Raises ValueError where one has experts."""
  for n, model in enumerate(models):
    layers = [i for i, sparse in enumerate(model.sparse) if sparse]
    if layers:
      raise UserError(
        f'{method}: model {n} has experts in the layers {layers}; it wants '
        'dense models'
      )


def rows(path: str, E: int, D: int) -> np.ndarray:
  """f32 [E, D] of a .npy file: a row of the router for each expert.

  Raises:
    ValueError: other shapes; an expert that no row names.
  """
  try:
    found = npy_files.read(path, 2).astype(np.float32)
  except OSError as e:
    raise UserError(f'rows={path!r}: {e.strerror}') from None
  if len(found) != E:
    some = f'no row for expert {len(found)}' if len(found) < E else 'too many'
    raise UserError(f'rows={path!r}: {len(found)} rows, {E} experts: {some}')
  if found.shape[1] != D:
    raise UserError(f'rows={path!r}: width {found.shape[1]}, the model has {D}')
  return found


def mean(
  arrays: Sequence[np.ndarray], weights: Sequence[float] | None = None
) -> np.ndarray:
  """The mean in float64, as the first's dtype: equal parts give themselves."""
  share = [1.0] * len(arrays) if weights is None else weights
  total = np.zeros(arrays[0].shape, np.float64)
  for v, w in zip(arrays, share):
    total += w * v.astype(np.float64)
  return (total / sum(share)).astype(arrays[0].dtype)


def average(
  models: Sequence[trees.Model], weights: Sequence[float] | None = None
) -> trees.Model:
  """Of parameters and balancing states; without the optimizer's."""
  over = lambda dicts: {
    k: mean([d[k] for d in dicts], weights) for k in dicts[0]
  }
  by_layer = lambda name: tuple(
    over(dicts) for dicts in zip(*(getattr(m, name) for m in models))
  )
  return models[0].replace(
    rest=over([m.rest for m in models]),
    layers=by_layer('layers'),
    balance=by_layer('balance'),
    moments=None,
    counts={},
  )


def changed(model: trees.Model, fields: dict[str, Any]) -> trees.Model:
  """With other fields of its config."""
  config = trees.with_fields(model.config, fields)
  return dataclasses.replace(model, config=config)


def _layers(model: trees.Model) -> dict[str, Any]:
  config = model.config
  return {
    'model.num_layers': config.model.num_layers,
    'moe.layers': config.moe.layers,
  }


def _described(model: trees.Model) -> dict[str, Any]:
  config = model.config
  groups = config.model.to_dict(), config.moe.to_dict()
  if config.moe.layers == 'none':
    groups = groups[0], {'layers': 'none'}
  named = {
    f'{group}.{k}': v
    for group, fields in zip(('model', 'moe'), groups)
    for k, v in fields.items()
  }
  return {k: v for k, v in named.items() if k not in _FREE}


def _shapes(model: trees.Model) -> dict[str, tuple[int, ...]]:
  found = {k: v.shape for k, v in model.rest.items()}
  for i, layer in enumerate(model.layers):
    found |= {f'layer {i} {k}': v.shape for k, v in layer.items()}
  return found
