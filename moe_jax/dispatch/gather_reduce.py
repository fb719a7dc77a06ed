"""All-gather the tokens, run the local experts, reduce-scatter: dropless.

Trevor Gale et al., "MegaBlocks: Efficient Sparse Training with
Mixture-of-Experts", 2022, arXiv:2211.15841: rows sorted by expert; here in
MaxText's "ring of experts": every edge that seating kept is computed, and
nothing is padded to a capacity. On one device it is the plain sorted path
without a collective: the one for small models.

On an expert axis of S devices each gathers the tokens of the S - 1 others and
returns as many partial sums, whatever K: less on the wire than an all-to-all's
K (S - 1) / S rows a token each way while S < K, more beyond. The sums cross in
float32, so that there is one rounding.

A device's rows are bounded by the worst that its e experts can be asked for:
S x G x T x min(K, e) for G groups of T tokens each (dropless). The bound costs
memory, and FLOPs where the product's follow its rows and not its groups;
`blocked` follows the groups.

Where the expert axis exceeds 1, forward compiles to three all-gathers (tokens,
weights, edges) and one reduce-scatter, backward to one all-gather and two
reduce-scatters. Do not use it where S exceeds K by much.
"""

import dataclasses

from moe_jax import registry
from moe_jax.dispatch import base
from moe_jax.kernels import grouped


@registry.register
@dataclasses.dataclass(frozen=True)
class GatherReduce(base.Dispatch):
  """matmul: call string of `kernels.grouped`."""

  matmul: str = 'auto'

  def __post_init__(self):
    grouped.build(self.matmul)

  def __call__(self, experts, params, x_GTD, seated, axes, key):
    y_GTD = base.gather_reduce(
      experts, params, x_GTD, seated, axes, key, self.matmul
    )
    return y_GTD, seated.cause_N
