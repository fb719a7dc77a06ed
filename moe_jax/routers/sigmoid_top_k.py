"""DeepSeek's routing: sigmoid affinities, group-limited top-k, scaling.

DeepSeek-AI, "DeepSeek-V3 Technical Report", 2024, arXiv:2412.19437, section
2.1.2, equations 12 to 16: s = sigmoid(x W); the k largest of s + b are chosen,
b being the selection bias of `loss_free_bias`; the weights are s over the sum
of the chosen, times a factor (2.5, in the released code and not in equation
13). Node-limited: experts lie in `groups` equal blocks, a block's score is the
sum of its two largest s + b, and only the best `kept_groups` may be chosen from
(V3: 8, 4 and k=8 of 256). DeepSeek-V2's group-limited greedy (arXiv:2405.04434)
is score='softmax', group_score='max', renormalize=False, scaling 16 (recalled:
160 experts, k=6, 3 of 8 groups); V4's score is 'sqrt_softplus'.

Trap: other groups are masked with -inf. A mask of 0, as in Hugging Face's
transformers 4.57, chooses from them where biased scores are negative.
`probs_TE` is s over its sum, as the sequence-wise loss has it (equation 19). In
a decoder binding capacity leaks: see `top_k`.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.errors import UserError
from moe_jax.kernels import gates, order_statistics
from moe_jax.routers import base

LOG_SCORES = {
  'sigmoid': jax.nn.log_sigmoid,
  'softmax': jax.nn.log_softmax,
  'sqrt_softplus': lambda z: gates.log_softplus(z) / 2,
}
IN_GROUP = {'top_2': 2, 'max': 1}


@registry.register
@dataclasses.dataclass(frozen=True)
class SigmoidTopK(base.Choosing, base.Matrix):
  """k experts a token; groups=1 is no limit.

  group_score: 'top_2' sums a group's two best experts, 'max' takes one.
  """

  k: int = 8
  score: str = 'sigmoid'
  renormalize: bool = True
  scaling: float = 2.5
  groups: int = 1
  kept_groups: int = 1
  group_score: str = 'top_2'

  def __post_init__(self):
    super().__post_init__()
    for name, table in (('score', LOG_SCORES), ('group_score', IN_GROUP)):
      if getattr(self, name) not in table:
        raise UserError(
          f'sigmoid_top_k: {name}={getattr(self, name)!r}; valid: '
          f'{", ".join(table)}'
        )
    if self.k == 1 and self.renormalize:
      raise UserError('sigmoid_top_k: k=1 needs renormalize=False to learn')
    if not 1 <= self.kept_groups <= self.groups:
      valid = f'valid: 1 to groups={self.groups}'
      raise UserError(f'sigmoid_top_k: kept_groups={self.kept_groups}; {valid}')

  def limit(self, E):
    size, least = E // self.groups, IN_GROUP[self.group_score]
    if E % self.groups or (self.groups > 1 and size < least):
      raise UserError(
        f'sigmoid_top_k: groups={self.groups} must divide num_experts={E} into '
        f'groups of at least {least}'
      )
    return size * self.kept_groups

  def __call__(self, params, x_TD, ctx):
    logits_TE = base.linear_logits(params, x_TD)
    log_TE = LOG_SCORES[self.score](logits_TE)
    chosen = base.choose(jnp.exp(log_TE), ctx, self.k, then=self.limited)
    weigh = jax.nn.softmax if self.renormalize else jnp.exp
    return chosen.routing(
      self.scaling * weigh(chosen.of(log_TE)),
      **base.affinities(logits_TE, log_TE),
    )

  def limited(self, scores_TE):
    """Those of the experts outside of the best groups are -inf."""
    if self.kept_groups == self.groups:
      return scores_TE
    return order_statistics.limited(
      *(scores_TE, self.groups, self.kept_groups, IN_GROUP[self.group_score])
    )
