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
from moe_jax.errors import UserError
from moe_jax.routers import base


@registry.register
@dataclasses.dataclass(frozen=True)
class GptOss(base.Router):
  """k experts a token, at least 2; init_std: as in `base.init_linear`."""

  k: int = 4
  init_std: float | None = None
  has_matrix = True

  def __post_init__(self):
    base.check_k('gpt_oss', self.k)
    if self.k == 1:
      raise UserError(
        'gpt_oss: k=1 makes every weight 1 and leaves the router without a '
        'gradient; valid: from 2'
      )

  def check(self, E):
    base.check_k('gpt_oss', self.k, E)

  def init(self, key, E, D):
    return base.init_linear(key, E, D, self.init_std) | {'bias': jnp.zeros(E)}

  def __call__(self, params, x_TD, ctx):
    logits_TE = base.linear_logits(params, x_TD) + params['bias']
    scores_TE, solved_E = base.biased(logits_TE, self.k, ctx)
    _, expert_TK = jax.lax.top_k(scores_TE, self.k)
    return base.from_choices(
      expert_TK,
      jax.nn.softmax(jnp.take_along_axis(logits_TE, expert_TK, -1)),
      ctx,
      logits_TE.shape[-1],
      logits_TE=logits_TE,
      **base.normalized(logits_TE),
      solved_E=solved_E,
    )

  def experts_per_token(self, E):
    return float(self.k)
