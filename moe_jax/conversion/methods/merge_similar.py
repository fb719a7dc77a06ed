"""Experts that are alike become one: their weighted average.

Pingzhi Li et al., "Merge, Then Compress: Demystify Efficient SMoE with Hints
from Its Routing Policy", ICLR 2024, arXiv:2310.01334 (M-SMoE; recalled):
experts are grouped by what the router makes of them, and averaged by how much
they are used. Here the pair whose rows of the router, or weights, have the
largest cosine is merged until so many are left; a group's row is the average of
its rows. Sums are of float64: copies give what they are copies of.

Differs from the paper: groups grow pair by pair, not around the most used
experts, and hidden units are not matched before they are averaged, which wants
experts with an ancestor in common (upcycled, duplicated ones). The order of
experts is that of each group's first.
"""

import dataclasses

import numpy as np

from moe_jax import registry
from moe_jax.conversion import experts
from moe_jax.conversion.methods import base
from moe_jax.errors import UserError

BY = ('rows', 'weights')


@registry.register
@dataclasses.dataclass(frozen=True)
class MergeSimilar(base.Method):
  """What is left.

  Attributes:
    num_experts: of each layer.
    by: what is compared, one of BY.
    k: choices of a token; 0 is as they were, cut to the experts.
    loads: as `prune` has them, the weights of the average; '' are equal ones.
  """

  num_experts: int
  by: str = 'weights'
  k: int = 0
  loads: str = ''

  def __post_init__(self):
    if self.by not in BY:
      raise registry.unknown('by', self.by, BY)

  def __call__(self, key, model):
    found, config = experts.layers(model), model.config
    layer, D = next(iter(found.values())), config.model.d_model
    E, axes = layer.num_experts, experts.axes(layer, D)
    if not 1 <= self.num_experts <= E:
      raise UserError(f'merge_similar: num_experts={self.num_experts} of {E}')
    use = np.ones((len(found), E))
    if self.loads:
      use = experts.loads(self.loads, len(found), E) + 1e-9
    part = 'moe/router/' if self.by == 'rows' else 'moe/experts/'
    groups = {}
    for i, use_E in zip(found, use):
      own = [
        np.moveaxis(v, axes[k], 0)[:E].reshape(E, -1)
        for k, v in sorted(model.layers[i].items())
        if k.startswith(part) and k in axes
      ]
      groups[i] = _grouped(np.concatenate(own, 1), use_E, self.num_experts)
    few = experts.averaged(model, groups, dict(zip(found, use)))
    return experts.counted(few, self.num_experts, self.k)


def _grouped(v_EN, use_E, n):
  """n groups of experts, by the cosine of their weighted averages."""
  groups = [[e] for e in range(len(v_EN))]
  v = [row.astype(np.float64) for row in v_EN]
  while len(groups) > n:
    m = np.stack(v)
    m /= np.maximum(np.linalg.norm(m, axis=1, keepdims=True), 1e-30)
    # The same pair on every machine, where several are as near.
    near = np.where(np.triu(np.ones((len(m),) * 2), 1), m @ m.T, -np.inf)
    a, b = np.unravel_index(np.argmax(near.round(9)), near.shape)
    groups[a] += groups.pop(b)
    v.pop(b)
    v[a] = np.average(v_EN[groups[a]].astype(np.float64), 0, use_E[groups[a]])
  return [sorted(g) for g in groups]
