"""Branch-Train-MiX: the branches' FFNs are the experts, all else is averaged.

Sainbayar Sukhbaatar et al., "Branch-Train-MiX: Mixing Expert LLMs into a
Mixture-of-Experts LLM", 2024, arXiv:2403.07816, section 3: attention, norms,
embeddings and head are the plain mean of the branches', the routers are new,
and the whole is trained on the union of their data. Where weights sum to 1 a
branch that is mixed with itself is itself.

The paper's routings, by call string: top-2, `top_k(k=2)`; top-1, `switch()`
with a capacity factor of 1.5; soft, `top_k` with k the number of experts;
`sample_top_1()`, where the paper leaves the first layer soft and here all are
alike. Arranged as 'split', each FFN gives `parts` experts of a `parts`th of the
width; as 'blend', expert n has the n-th part of every branch's. Neither is
scaled. Balancing is a weight of 0.01 on N sum u_i p_i whose u_i are mean gates;
`switch_loss` has the share of tokens in their place. `balance=()` is without.
The seed may be one of the branches, as in the paper.
"""

import dataclasses

import numpy as np

from moe_jax import registry
from moe_jax.conversion import sparse, splitting
from moe_jax.conversion.methods import base
from moe_jax.errors import UserError

ARRANGED = ('whole', 'split', 'blend')


@registry.register
@dataclasses.dataclass(frozen=True)
class Mix(base.Method):
  """The branches' FFNs as experts.

  Attributes:
    router: its call string; choices above the number of experts are cut.
    arranged: one of ARRANGED.
    parts: of each FFN, where it is 'split' or 'blend'.
    balance: `moe.balance` of the mixture.
    layers: which, as `moe.layers`; other FFNs are averaged.
    rows: .npy file of the router's rows [E, D]; '' draws them.
  """

  router: str = 'top_k(k=2)'
  arranged: str = 'whole'
  parts: int = 1
  balance: tuple[str, ...] = ('switch_loss(weight=0.01)',)
  layers: str = 'all'
  rows: str = ''
  sources, related = (1, None), True

  def __post_init__(self):
    if self.arranged not in ARRANGED:
      raise registry.unknown('arranged', self.arranged, ARRANGED)
    if self.parts < 1 or (self.arranged == 'whole' and self.parts != 1):
      raise UserError(
        f'mix: parts={self.parts} of FFNs that are arranged as '
        f"'{self.arranged}'; valid: 1 where 'whole', else from 1"
      )

  def __call__(self, key, *models):
    base.check_dense(models, 'mix')
    base.check_alike(models)
    mean, config = base.average(models), models[0].config
    kind, N, C = models[0].records[0].ffn, len(models), self.parts
    width = splitting.hidden(config.model.ffn, kind.d_ff, C)['moe.d_ff']

    def make(i):
      own = [sparse.ffn(m, i) for m in models]
      if self.arranged == 'whole':
        return sparse.stacked(kind, own)
      parts = splitting.slices(kind, sparse.stacked(kind, own), C)
      return parts if self.arranged == 'split' else self._blended(kind, parts)

    blend = self.arranged == 'blend'
    return sparse.of_dense(
      *(key, mean, make),
      num_experts=C if blend else N * C,
      router=self.router,
      layers=self.layers,
      d_ff=width * (N if blend else 1),
      rows=self.rows,
      balance=self.balance,
    )

  def _blended(self, kind, parts):
    """Slices [N C, ...], by branch -> experts [C, ...] with one of each."""

    def one(k, v_N):
      if 'mlp' in kind.axes[k]:
        return np.concatenate(v_N, kind.axes[k].index('mlp') - 1)
      return base.mean(list(v_N))  # an output bias

    out = {}
    for k, v in parts.items():
      by_part = v.reshape(-1, self.parts, *v.shape[1:]).swapaxes(0, 1)
      out[k] = np.stack([one(k, v_N) for v_N in by_part])
    return out
