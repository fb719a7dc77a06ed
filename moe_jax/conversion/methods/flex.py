"""FlexOlmo's merge: the experts of owners who trained apart, by their rows.

Weijia Shi et al., "FlexOlmo: Open Language Models for Flexible Data Use", 2025,
arXiv:2507.07024, section 3: every owner trains, beside the public expert,
number 0, one of their own with its row of the router, all else frozen. The
mixture is the public model with all owners' experts and rows behind each other,
untrained; so who leaves takes what was theirs, and `remove` of the merge is to
the bit the merge without them. Rows begin as the owners' domain embeddings.

What was to stay frozen is compared bit by bit, expert 0 and its row included,
as their code does. Biases of rows (the router `flex_olmo`) are merged, too; the
published merge leaves them out.
"""

import dataclasses

import numpy as np

from moe_jax import registry
from moe_jax.conversion import experts, trees
from moe_jax.conversion.methods import base
from moe_jax.errors import UserError


@registry.register
@dataclasses.dataclass(frozen=True)
class Flex(base.Method):
  """k: choices of a token, cut to the experts there are; 0 is the owners'."""

  k: int = 0
  sources, related = (1, None), True

  def __post_init__(self):
    if self.k < 0:
      raise UserError(f'flex: k={self.k}; valid from 1, or 0')

  def __call__(self, key, *models):
    first, config = models[0], models[0].config
    base.check_alike(models)
    found = experts.layers(first)
    D, own = config.model.d_model, next(iter(found.values())).num_experts
    if own < 2:
      raise UserError('flex: the models have no expert beside number 0')
    for n, model in enumerate(models[1:], 1):
      self._check_frozen(n, first.rest, model.rest, {})
      for i, theirs in enumerate(model.layers):
        axes = experts.axes(found[i], D) if i in found else {}
        self._check_frozen(n, first.layers[i], theirs, axes, f'layer {i} ')
    digests = [trees.digest(m) for m in models]
    for n, digest in enumerate(digests):
      if digest in digests[:n]:
        raise UserError(
          f'flex: models {digests.index(digest)} and {n} are the same to the '
          'bit; each owner comes once'
        )

    def merged(name):
      layers = []
      for i, values in enumerate(zip(*(getattr(m, name) for m in models))):
        axes = experts.axes(found[i], D) if i in found else {}
        layers.append({k: _joined(k, values, axes) for k in values[0]})
      return tuple(layers)

    E = 1 + len(models) * (own - 1)
    router = config.moe.router
    if self.k:
      router = experts.respec(router, k=self.k)
    fields = {
      'moe.num_experts': E,
      'moe.router': experts.clipped(router, E),
    }
    return base.changed(first, fields).replace(
      layers=merged('layers'),
      balance=merged('balance'),
      moments=None,
      counts={},
    )

  def _check_frozen(self, n, first, other, axes, where=''):
    for k, v in first.items():
      axis, theirs = axes.get(k), other[k]
      if axis is not None:
        v, theirs = (np.take(x, [0], axis) for x in (v, theirs))
      if v.tobytes() != theirs.tobytes():
        what = 'expert 0 of ' if axis is not None else ''
        raise UserError(
          f'flex: {what}{where}{k} of model {n} is not to the bit that of the '
          'first: it was not frozen'
        )


def _joined(name, values, axes):
  """Expert 0 of the first, then those that each model has beside it."""
  if name not in axes:
    return values[0][name]
  axis = axes[name]
  of = lambda v: np.delete(v[name], 0, axis)
  anchor = np.take(values[0][name], [0], axis)
  return np.concatenate([anchor, *map(of, values)], axis)
