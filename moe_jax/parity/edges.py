"""A router whose edges come in no order that combine could use."""

import dataclasses

import jax.numpy as jnp

from moe_jax.routers import base, top_k


@dataclasses.dataclass(frozen=True)
class Edges(base.Router):
  """Renormalised top-2 as expert choice stores it, weighted as in Llama 4.

  Edges are sorted by expert, without the `choices` hint; the weight is on the
  expert's input. Seats go as in `top_k`.
  """

  def init(self, key, E, D):
    return base.init_linear(key, E, D)

  def experts_per_token(self, E):
    return 2.0

  def __call__(self, params, x_TD, ctx):
    r = top_k.TopK(k=2)(params, x_TD, ctx)
    at = jnp.argsort(r.expert_N)
    return r.replace(
      token_N=r.token_N[at],
      expert_N=r.expert_N[at],
      weight_N=r.weight_N[at],
      priority_N=at.astype(jnp.int32),
      choices=None,
      weight_on='input',
    )
