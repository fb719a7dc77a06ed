"""Sparse upcycling: the experts are copies of a dense model's FFN.

Aran Komatsuzaki et al., "Sparse Upcycling: Training Mixture-of-Experts from
Dense Checkpoints", ICLR 2023, arXiv:2212.05055, section 3 (recalled: no report
of ours quotes it): all else is copied, the router is new, and training goes on,
with the optimizer's state or without. Noise, a share of each copy's weights
drawn anew, is that of OLMoE's code (Muennighoff et al. 2024, arXiv:2409.02060:
half of them, deviation 0.02). Fine-grained: Ethan He et al., "Upcycling Large
Language Models into Mixture of Experts", 2024, arXiv:2410.07524, its virtual
groups (recalled): each copy is cut into slices of its hidden width that share
their row of the router, so that a token chooses all of them; the last matrix is
scaled by what their weights lack.

Where a token's weights sum to 1 the model computes what the dense one did; with
raw weights each layer gives the dense FFN's output times their sum. A router
that starts at zero is refused: all tokens would go to the same experts.
"""

import dataclasses

import jax
import numpy as np

from moe_jax import registry
from moe_jax.conversion import sparse, splitting
from moe_jax.conversion.methods import base
from moe_jax.errors import UserError


@registry.register
@dataclasses.dataclass(frozen=True)
class Upcycle(base.Method):
  """Copies of each FFN.

  Attributes:
    num_experts: copies.
    router: choices are of copies.
    layers: which, as `moe.layers`.
    slices: of each copy; num_experts x slices are then the experts, and a
      token has slices x k choices.
    noise, noise_std: share of a copy's weights that are drawn, normal.
    rows: .npy file of the router's rows [num_experts, D]; '' draws them.
    optimizer: its state is carried, the moments copied; those of routers are
      fresh.
  """

  num_experts: int = 8
  router: str = 'top_k(k=2)'
  layers: str = 'all'
  slices: int = 1
  noise: float = 0.0
  noise_std: float = 0.02
  rows: str = ''
  optimizer: bool = False

  def __post_init__(self):
    for name in ('num_experts', 'slices'):
      if getattr(self, name) < 1:
        raise UserError(f'{name}={getattr(self, name)}; valid from 1')
    if not 0 <= self.noise <= 1 or self.noise_std < 0:
      raise UserError(
        f'noise={self.noise}, noise_std={self.noise_std}; valid: a share from '
        '0 to 1, a deviation from 0'
      )
    if self.optimizer and self.slices > 1:
      raise UserError("optimizer=True: it has no moments of slices' matrices")

  def __call__(self, key, model):
    base.check_dense([model], 'upcycle')
    key_router, key_noise = jax.random.split(key)

    def make(i):
      kind, own = model.records[i].ffn, sparse.ffn(model, i)
      copies = sparse.stacked(kind, [own] * self.num_experts)
      return self._noisy(jax.random.fold_in(key_noise, i), copies)

    given = {k: getattr(self, k) for k in ('router', 'layers', 'rows')}
    made = sparse.of_dense(
      *(key_router, model, make), num_experts=self.num_experts, **given
    )
    if self.slices > 1:
      return splitting.all_experts(made, self.slices, sliced=True)
    if not self.optimizer:
      return made.replace(moments=None, counts={})
    return made.replace(moments=sparse.moments(model, made, self.num_experts))

  def _noisy(self, key, copies):
    if not self.noise:
      return copies
    out = {}
    for n, (k, v) in enumerate(sorted(copies.items())):
      pick, draw = jax.random.split(jax.random.fold_in(key, n))
      drawn = self.noise_std * np.asarray(jax.random.normal(draw, v.shape))
      new = np.asarray(jax.random.bernoulli(pick, self.noise, v.shape))
      out[k] = np.where(new, drawn, v).astype(v.dtype)
    return out
