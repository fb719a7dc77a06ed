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

POLICIES = ('all', 'threshold', 'random', 'gshard', 'sampled')


@registry.register
@dataclasses.dataclass(frozen=True)
class TopK(base.Choosing, base.Linear):
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
    if self.renormalize not in (True, False, 'kept'):
      what, given = 'renormalize of top_k', str(self.renormalize)
      raise registry.unknown(what, given, ('True', 'False', 'kept'))
    if self.k == 1 and self.renormalize:
      raise UserError(
        'top_k: k=1 makes every renormalised weight 1 and leaves the router '
        'without a gradient; use renormalize=False'
      )
    if self.second_policy not in POLICIES:
      what, given = 'second_policy of top_k', str(self.second_policy)
      raise registry.unknown(what, given, POLICIES)
    if not 0 < self.threshold <= 1:
      raise UserError(f'top_k: threshold={self.threshold}; valid: (0, 1]')

  def __call__(self, params, x_TD, ctx):
    policy = self.second_policy if ctx.train or self.policy_in_eval else 'all'
    found = self.affinities(params, x_TD, ctx)
    chosen = self.choose(found, ctx, self.k)
    if policy == 'sampled' and ctx.given_TK is None:
      expert_TK = self.sampled(chosen.expert_TK, found['logits_TE'], ctx)
      chosen = dataclasses.replace(chosen, expert_TK=expert_TK)
    log_TK = chosen.of(found['log_probs_TE'])
    share_TK = weight_TK = jax.nn.softmax(log_TK)
    if self.renormalize is not True:
      weight_TK = chosen.of(found['probs_TE'])
    used_TK = self.used(policy, share_TK, ctx)
    return chosen.routing(
      jnp.where(used_TK, weight_TK, 0.0),
      used_TK | (policy == 'gshard'),
      log_weight_TK=jnp.where(used_TK, log_TK, -jnp.inf),
      chosen_TK=chosen.expert_TK,
      **found,
      renormalize_kept=self.renormalize == 'kept',
    )

  def sampled(self, expert_TK, logits_TE, ctx):
    """The first choices, then k - 1 draws from the others, all different."""
    key = base.noise_key(ctx, 'second_policy')
    noise_TE = jax.random.gumbel(key, logits_TE.shape)
    first_TE = expert_TK[:, :1] == jnp.arange(logits_TE.shape[-1])
    scores_TE = jnp.where(first_TE, jnp.inf, logits_TE + noise_TE)
    return jax.lax.top_k(scores_TE, self.k)[1]

  def used(self, policy, share_TK, ctx):
    """bool [T, k], by each choice's share; the first always is."""
    used_TK = jnp.ones(share_TK.shape, bool)
    if policy == 'threshold':
      used_TK = share_TK >= self.threshold
    elif policy in ('random', 'gshard'):
      bar = self.threshold if policy == 'random' else 0.5
      key = base.noise_key(ctx, 'second_policy')
      level_TK = jax.random.uniform(key, share_TK.shape)
      used_TK = level_TK * bar < share_TK
    return used_TK.at[:, 0].set(True)
