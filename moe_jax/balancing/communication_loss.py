"""DeepSeek-V2's communication balance: what each group of experts receives.

DeepSeek-AI, "DeepSeek-V2: A Strong, Economical, and Efficient
Mixture-of-Experts Language Model", 2024, arXiv:2405.04434, section 2.2.3
(weight 0.02, beside 0.003 for the experts and 0.05 for the devices).

Group-limited routing bounds what a device sends, this loss evens out what it
receives. Sum over D groups of f''_d P''_d: f''_d is D / (M T) times the number
of tokens with an assignment in group d, however many, and P''_d the sum of the
mean affinities of its experts. 1 for balanced routing to M groups a token; less
where tokens reach fewer. The groups are consecutive experts, as in
`device_loss`.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.balancing import base
from moe_jax.errors import UserError


@registry.register
@dataclasses.dataclass(frozen=True)
class CommunicationLoss(base.Balance):
  """The loss on received tokens.

  Attributes:
    devices: D, divides E.
    limit: M, groups that a token may be sent to.
    weight: of the loss.
    scope: segments of the sums.
  """

  devices: int = 8
  limit: int = 3
  weight: float = 0.02
  scope: str = 'sequence'

  def check(self):
    if not 1 <= self.limit <= self.devices:
      raise UserError(
        f'communication_loss: limit={self.limit}; valid: 1 to '
        f'devices={self.devices}'
      )

  def stats(self, sums):
    r, D = sums.routing, self.devices
    base.check_devices('communication_loss', D, r.num_experts)
    probs_GTE = base.affinities(r, 'communication_loss')

    def reached(token_N, expert_N):
      # Nobody's edges have a group beyond the last, which is dropped.
      at = token_N, expert_N // (r.num_experts // D)
      return jnp.zeros((sums.mask_GT.shape[1], D)).at[at].set(1, mode='drop')

    sent_GTD = jax.vmap(reached)(r.token_N, r.expert_N)
    return {
      'sent': sums.tokens(sent_GTD),
      'prob': sums.tokens(probs_GTE),
      'tokens': sums.count(),
    }

  def loss(self, stats, state, router):
    S, D = stats['sent'].shape
    tokens_S1 = jnp.maximum(stats['tokens'], 1)[:, None]
    f_SD = D / self.limit * stats['sent'] / tokens_S1
    P_SD = (stats['prob'] / tokens_S1).reshape(S, D, -1).sum(-1)
    return (f_SD * P_SD).sum(-1)
