"""Round robin: token t goes to experts k t, k t + 1, ... of E; for benchmarks.

No paper; a perfectly even load, without parameters or gradients, to time what
a layer costs when routing is not to blame. Padding takes its turn but goes to
nobody. Says nothing about quality: experts see arbitrary tokens. Causal, since
only the place in the group counts.
"""

import dataclasses

import jax.numpy as jnp

from moe_jax import registry
from moe_jax.routers import base


@registry.register
@dataclasses.dataclass(frozen=True)
class RoundRobin(base.Choosing):
  """k experts a token, with weights 1 / k."""

  k: int = 1

  def init(self, key, E, D):
    return {}

  def __call__(self, params, x_TD, ctx):
    T = len(x_TD)
    turn_TK = self.k * jnp.arange(T)[:, None] + jnp.arange(self.k)
    weight_TK = jnp.full((T, self.k), 1 / self.k)
    return base.fixed(turn_TK % ctx.num_experts, ctx).routing(weight_TK)
