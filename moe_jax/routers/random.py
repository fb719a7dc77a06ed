"""Random routing: k experts drawn for each token, all as likely; a baseline.

Simiao Zuo et al., "Taming Sparsely Activated Transformer with Stochastic
Experts", ICLR 2022, arXiv:2110.04260 (THOR), section 3, recalled: nothing is
learned of who goes where, and the experts still learn. Weights are 1 / k.

In training the draw is keyed by group, layer and step, so that it is the same
on every mesh. In evaluation it needs no key: the token's place in its group,
the layer and `seed` decide, the same in every group, so that a model gives the
same loss twice. A cached token is first in its group, whatever its position.

Differs from the paper: THOR draws for a whole batch, and asks two draws to
agree by an extra loss; both are left out. No balancing rule can help: there are
no affinities. `round_robin` is the cheaper one to time a layer with.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.routers import base


@registry.register
@dataclasses.dataclass(frozen=True)
class Random(base.Choosing):
  """k: experts of a token, all different. seed: of evaluation's draw."""

  k: int = 1
  seed: int = 0

  def init(self, key, E, D):
    return {}

  def __call__(self, params, x_TD, ctx):
    T, E = len(x_TD), ctx.num_experts
    if ctx.train:
      key = base.noise_key(ctx, 'sample')
    else:
      layer = 0 if ctx.layer is None else ctx.layer
      key = jax.random.fold_in(jax.random.key(self.seed), layer)
    # By token: a draw does not depend on how many there are.
    key_T = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(T))
    level_TE = jax.vmap(lambda k: jax.random.uniform(k, (E,)))(key_T)
    _, expert_TK = jax.lax.top_k(level_TE, self.k)
    weight_TK = jnp.full((T, self.k), 1 / self.k)
    return base.fixed(expert_TK, ctx).routing(weight_TK)
