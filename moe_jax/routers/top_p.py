"""Dynamic top-p: as many experts as it takes to hold a share p of the mass.

Quzhe Huang et al., "Harder Tasks Need More Experts: Dynamic Routing in MoE
Models", ACL 2024, arXiv:2403.07652, section 2: of the softmax, sorted, the
shortest prefix whose sum reaches p; the combine weights are the raw
probabilities. The paper's model has p = 0.4 and 16 experts in every second
layer. Pair it with `switch_loss` and `entropy_loss`: without the latter the
router flattens its probabilities, and more and more experts are used.

The released code wants the sum to exceed p (`strict`), which differs where a
prefix sums to p exactly. Differs from both: `max_choices` bounds the
buffers; mass beyond it is lost. In a decoder binding capacity leaks: see
`top_k`.
"""

import dataclasses
import fractions
import math

import jax.numpy as jnp

from moe_jax import registry
from moe_jax.errors import UserError
from moe_jax.routers import base


@registry.register
@dataclasses.dataclass(frozen=True)
class TopP(base.Linear):
  """From 1 to `max_choices` experts a token.

  Attributes:
    p: probability to be held, above 0, at most 1.
    max_choices: 0 is all experts.
    strict: whether the sum must exceed p.
  """

  p: float = 0.4
  max_choices: int = 0
  strict: bool = False

  def __post_init__(self):
    super().__post_init__()
    if not 0 < self.p <= 1:
      raise UserError(f'top_p: p={self.p}; valid: above 0, at most 1')
    if self.max_choices:
      base.check_k('top_p', self.max_choices)

  def check(self, E):
    if self.max_choices:
      base.check_k('top_p', self.max_choices, E)

  def __call__(self, params, x_TD, ctx):
    found = self.affinities(params, x_TD, ctx)
    k = self.max_choices or ctx.num_experts
    chosen = self.choose(found, ctx, k)
    weight_TK = chosen.of(found['probs_TE'])
    # What those before hold; summed without itself, or rounding could differ.
    before_TK = jnp.pad(jnp.cumsum(weight_TK, -1)[:, :-1], ((0, 0), (1, 0)))
    used_TK = before_TK <= self.p if self.strict else before_TK < self.p
    return chosen.routing(weight_TK, used_TK, **found)

  def experts_per_token(self, E):
    """Those of uniform probabilities: without a bias no router uses more."""
    held = fractions.Fraction(str(self.p)) * E  # 0.55 * 20 is 11, not above
    count = math.floor(held) + 1 if self.strict else math.ceil(held)
    return float(min(count, self.max_choices or E))
