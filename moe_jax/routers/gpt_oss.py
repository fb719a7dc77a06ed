"""gpt-oss routing: top-k of biased logits, softmax over the chosen.

OpenAI, "gpt-oss-120b & gpt-oss-20b Model Card", 2025, arXiv:2508.10925, and the
released model code. The logits have a bias that is trained by gradient: it is
part of the affinity, and not the selection bias of a balancing rule, which is
added to the scores alone. A softmax over the chosen logits equals top-k of the
softmax, renormalised. How the models were balanced is not public. In a decoder
binding capacity leaks: see `top_k`.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.routers import base


@registry.register
@dataclasses.dataclass(frozen=True)
class GptOss(base.Choosing):
  """k experts a token, at least 2; init_std: as in `base.init_linear`."""

  k: int = 4
  init_std: float | None = None
  least_k, has_matrix = 2, True

  def init(self, key, E, D):
    return base.init_linear(key, E, D, self.init_std) | {'bias': jnp.zeros(E)}

  def __call__(self, params, x_TD, ctx):
    logits_TE = base.linear_logits(params, x_TD) + params['bias']
    chosen = base.choose(logits_TE, ctx, self.k)
    weight_TK = jax.nn.softmax(chosen.of(logits_TE))
    return chosen.routing(weight_TK, **base.affinities(logits_TE))
