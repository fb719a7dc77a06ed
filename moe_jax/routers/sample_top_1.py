"""Sampled top-1: one expert, drawn by Gumbel noise, weighted by its softmax.

Sainbayar Sukhbaatar et al., "Branch-Train-MiX: Mixing Expert LLMs into a
Mixture-of-Experts LLM", 2024, arXiv:2403.07816, section 3 (Sample Top-1): the
gate is softmax((logits + Gumbel noise) / tau), of which training keeps the
largest entry, so that the router has a gradient at the cost of one expert. The
schedule is that of Gumbel-softmax (Eric Jang et al., "Categorical
Reparameterization with Gumbel-Softmax", ICLR 2017, arXiv:1611.01144): tau =
max(least, exp(-rate x step)), with 0.5 and 1e-4; our report has the paper's
text without the exponential, which it takes for a fault of the extraction.

Differs from the paper: evaluation takes the most probable expert with weight 1,
where the paper draws it; its first layer is soft, here all are alike. Losses
see the softmax of the logits without noise.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.errors import UserError
from moe_jax.routers import base


@registry.register
@dataclasses.dataclass(frozen=True)
class SampleTop1(base.Choosing, base.Matrix):
  """rate, least: of the temperature's schedule."""

  rate: float = 1e-4
  least: float = 0.5
  k = 1

  def __post_init__(self):
    super().__post_init__()
    if not (self.rate >= 0 and 0 < self.least <= 1):
      raise UserError(
        f'sample_top_1: rate={self.rate}, least={self.least}; valid: rate from '
        '0, least above 0 and at most 1'
      )

  def __call__(self, params, x_TD, ctx):
    logits_TE = base.linear_logits(params, x_TD)
    found = base.affinities(logits_TE)
    if not ctx.train:
      chosen = base.choose(found['probs_TE'], ctx, 1)
      return chosen.routing(jnp.ones_like(chosen.score_TK), **found)
    noise_TE = jax.random.gumbel(base.noise_key(ctx, 'sample'), logits_TE.shape)
    step = base.known(ctx, 'step', 'sample_top_1')
    tau = jnp.maximum(self.least, jnp.exp(-self.rate * step))
    gate_TE = jax.nn.softmax((logits_TE + noise_TE) / tau)
    chosen = base.choose(gate_TE, ctx, 1)
    return chosen.routing(chosen.of(gate_TE), **found)
