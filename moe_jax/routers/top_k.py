"""Top-k routing: softmax over all experts, then the k largest.

Noam Shazeer et al., "Outrageously Large Neural Networks: The Sparsely-Gated
Mixture-of-Experts Layer", ICLR 2017, arXiv:1701.06538, section 2; as used
without noise by Mixtral (Albert Q. Jiang et al., "Mixtral of Experts", 2024,
arXiv:2401.04088, section 2.1: renormalised, the same as a softmax over the
chosen logits) and OLMoE (Niklas Muennighoff et al., "OLMoE: Open
Mixture-of-Experts Language Models", 2024, arXiv:2409.02060, section 2: raw).
Policies for the later choices: ST-MoE (Zoph et al. 2022, arXiv:2202.08906,
appendix G) and GShard (Lepikhin et al. 2020, arXiv:2006.16668, algorithm 1).

With binding capacity and k > 1 rank-major seating lets a later token take an
earlier one's seat: not causal then; causal while nothing drops.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.errors import UserError
from moe_jax.routers import base


@registry.register
@dataclasses.dataclass(frozen=True)
class TopK(base.Linear):
  """k experts a token; further options are those of `base.Linear`.

  Attributes:
    renormalize: True divides the weights by their sum before drops, 'kept'
      after drops (over the seated choices), False leaves the probabilities.
    second_policy: which later choices are used, by their share s of the k
      probabilities: 'all'; 'threshold', s >= threshold; 'random', with
      probability min(1, s / threshold) (ST-MoE, MTF); 'gshard', min(1, 2 s),
      and the seat of one not used stays empty; 'sampled' draws the later
      choices themselves (lingvo). Losses count those not used, too (MTF).
    threshold: ST-MoE's section 3.4, a fifth of the first probability, is 1/6.
    policy_in_eval: in evaluation too (MTF); else all are used there.
  """

  k: int = 2
  renormalize: bool | str = True
  second_policy: str = 'all'
  threshold: float = 0.2
  policy_in_eval: bool = False

  def __post_init__(self):
    super().__post_init__()
    base.check_k('top_k', self.k)
    if self.renormalize not in (True, False, 'kept'):
      raise UserError(
        f"top_k: renormalize={self.renormalize!r}; valid: True, False, 'kept'"
      )
    if self.k == 1 and self.renormalize:
      raise UserError(
        f'top_k: k=1 with renormalize={self.renormalize!r} makes every weight 1'
        ' and leaves the router without a gradient; use renormalize=False'
      )
    if self.second_policy not in base.SECOND_POLICIES:
      raise UserError(
        f'top_k: second_policy={self.second_policy!r}; valid: '
        f'{", ".join(base.SECOND_POLICIES)}'
      )
    if not 0 < self.threshold <= 1:
      raise UserError(f'top_k: threshold={self.threshold}; valid: (0, 1]')

  def check(self, E):
    base.check_k('top_k', self.k, E)

  def __call__(self, params, x_TD, ctx):
    logits_TE, probs_TE, rest = self.affinities(params, x_TD, ctx)
    E = probs_TE.shape[-1]
    policy = self.second_policy if ctx.train or self.policy_in_eval else 'all'
    scores_TE, solved_E = self.scores(logits_TE, probs_TE, ctx, self.k)
    # Integers carry no gradient; the gathered probabilities do.
    _, expert_TK = jax.lax.top_k(scores_TE, self.k)
    if policy == 'sampled':
      expert_TK = base.draw_others(expert_TK[:, 0], logits_TE, self.k, ctx)
    weight_TK = jnp.take_along_axis(probs_TE, expert_TK, -1)
    log_TK = jnp.take_along_axis(rest['log_probs_TE'], expert_TK, -1)
    share_TK = jax.nn.softmax(log_TK)
    if self.renormalize is True:
      weight_TK = share_TK
    used_TK = base.used_choices(policy, share_TK, self.threshold, ctx)
    sent_TK = used_TK | (policy == 'gshard')
    return base.from_choices(
      jnp.where(sent_TK, expert_TK, E),
      jnp.where(used_TK, weight_TK, 0.0),
      *(ctx, E),
      log_weight_TK=jnp.where(used_TK, log_TK, -jnp.inf),
      chosen_TK=expert_TK,
      logits_TE=logits_TE,
      probs_TE=probs_TE,
      **rest,
      solved_E=solved_E,
      renormalize_kept=self.renormalize == 'kept',
    )

  def experts_per_token(self, E):
    return float(self.k)
