"""Experts that are used least leave, in each layer its own.

Xudong Lu et al., "Not All Experts are Equal: Efficient Expert Pruning and
Skipping for Mixture-of-Experts Large Language Models", ACL 2024,
arXiv:2402.14800 (recalled), has pruning by frequency as the baseline that its
search over reconstruction errors beats. Use is the share of a layer's
assignments, as recorded in training or by hand. The experts that stay keep
their order; all layers keep as many; choices are cut to those that are left.
"""

import dataclasses

import numpy as np

from moe_jax import registry
from moe_jax.conversion import experts
from moe_jax.conversion.methods import base
from moe_jax.errors import UserError


@registry.register
@dataclasses.dataclass(frozen=True)
class Prune(base.Method):
  """What is left.

  Attributes:
    num_experts: of each layer.
    loads: a run's workdir, its metrics.jsonl, or a JSON list of a list of
      numbers for each MoE layer: `planning.loads.read`.
    optimizer: its state is carried.
  """

  num_experts: int
  loads: str
  optimizer: bool = False

  def __call__(self, key, model):
    found = experts.layers(model)
    E = next(iter(found.values())).num_experts
    if not 1 <= self.num_experts <= E:
      raise UserError(f'prune: num_experts={self.num_experts} of {E}')
    use = experts.loads(self.loads, len(found), E)
    # Of equal ones the first stay.
    best = np.argsort(-use, axis=1, kind='stable')[:, : self.num_experts]
    return experts.kept(model, dict(zip(found, np.sort(best, axis=1))))
