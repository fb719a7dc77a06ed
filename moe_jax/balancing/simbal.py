"""SimBal: the router's matrix is kept near orthonormal.

Nabil Omi, Siddhartha Sen and Ali Farhadi, "Load Balancing Mixture of Experts
with Similarity Preserving Routers", 2025, arXiv:2506.14038, section 3.1,
equation 4: |R^T R - I|, the sum of the absolute entries (appendix A.3, figure
6), R being the router's [D, E]; weight 0.1, which the paper finds not to
matter.

Orthonormal columns keep the angles between tokens: alike tokens go to alike
experts, and none is forgotten. The loss sees no token, and no load: that may
stay uneven. 0 at its best, and not normalised: it grows with E^2. The paper
also starts R orthogonal; `init_std` of D^-0.5 starts its columns at a length
of about 1. E above D cannot reach 0.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.balancing import base


@registry.register
@dataclasses.dataclass(frozen=True)
class Simbal(base.Balance):
  """weight: of the loss. scope: without effect, but 'global' costs more."""

  weight: float = 0.1
  scope: str = 'group'
  reads_matrix = True

  def stats(self, sums):
    return {'tokens': sums.count()}

  def loss(self, stats, state, router):
    R_DE = router['kernel']
    gram_EE = jnp.matmul(R_DE.T, R_DE, precision=jax.lax.Precision.HIGHEST)
    off = jnp.abs(gram_EE - jnp.eye(len(gram_EE))).sum()
    return jnp.broadcast_to(off, stats['tokens'].shape)
