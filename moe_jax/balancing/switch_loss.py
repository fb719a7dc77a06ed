"""The load-balancing loss of Switch Transformer: E * sum_i f_i P_i.

William Fedus et al., "Switch Transformers: Scaling to Trillion Parameter Models
with Simple and Efficient Sparsity", JMLR 2022, arXiv:2101.03961, section 2.2,
equations 4 to 6 (weight 0.01); the same form in GShard (Lepikhin et al. 2020,
arXiv:2006.16668) and ST-MoE (Zoph et al. 2022, arXiv:2202.08906, equations 7 to
9).

f_i is the share of assignments to expert i before drops, P_i the mean router
probability. 1 for balanced routing, which is no lower bound: f and P may
anti-correlate. f carries no gradient. Choices that a second policy leaves
unused (`top_k`) count in f, of 'all' and of second choices, as in
Mesh-TensorFlow, which takes its losses before the policy.
"""

import dataclasses

import jax.numpy as jnp

from moe_jax import registry
from moe_jax.balancing import base
from moe_jax.errors import UserError
from moe_jax.kernels import gates

COUNTS = ('first', 'all', 'union')


@registry.register
@dataclasses.dataclass(frozen=True)
class SwitchLoss(base.Balance):
  """The papers' auxiliary loss and its published conventions.

  Attributes:
    weight: the papers' alpha.
    scope: segments of the sums; the papers' is the group.
    count: f is the share of the 'first' choices (the papers), of 'all' choices,
      or of tokens with the expert in the 'union' of theirs: K times 'all'
      (T5X, Hugging Face), K for balanced routing.
    second_weight: adds this times the same form over second choices, P being
      renormalised without the first (Mesh-TensorFlow's option: 0.5).
    over_padding: divide f and P by all tokens, padding included, though it is
      in neither (Mesh-TensorFlow's top-2).
  """

  weight: float = 0.01
  scope: str = 'group'
  count: str = 'first'
  second_weight: float = 0.0
  over_padding: bool = False

  def check(self):
    if self.count not in COUNTS:
      raise UserError(
        f'switch_loss: count={self.count!r}; valid: {", ".join(COUNTS)}'
      )

  def stats(self, sums):
    r = sums.routing
    probs_GTE = base.affinities(r, 'switch_loss')
    f32 = lambda v: v.astype(jnp.float32)
    first = 0 if self.count == 'first' else None
    stats = {
      'load': f32(sums.load(first, chosen=True)),
      'prob': sums.tokens(probs_GTE),
      'tokens': sums.count(),
      'length': sums.length(),
    }
    if self.second_weight:
      first_GT1 = r.expert_N[:, : sums.mask_GT.shape[1], None]
      other_GTE = first_GT1 != jnp.arange(r.num_experts)
      if r.log_probs_TE is None:
        rest = gates.shares(jnp.where(other_GTE, probs_GTE, 0.0))
      else:
        rest = gates.shares_of_logs(r.log_probs_TE, other_GTE)
      stats['second_load'] = f32(sums.load(1, chosen=True))
      stats['second_prob'] = sums.tokens(rest)
    return stats

  def weights(self, sums):
    return sums.length() if self.over_padding else sums.count()

  def loss(self, stats, state, router):
    loss_S = self._form(stats, stats['load'], stats['prob'])
    if self.second_weight:
      second = self._form(stats, stats['second_load'], stats['second_prob'])
      loss_S += self.second_weight * second
    return loss_S

  def _form(self, stats, load_SE, prob_SE):
    tokens_S = jnp.maximum(stats['tokens'], 1)
    edges_S = jnp.maximum(load_SE.sum(-1), 1)
    edges_S = tokens_S if self.count == 'union' else edges_S
    f_SE, P_SE = load_SE / edges_S[:, None], prob_SE / tokens_S[:, None]
    loss_S = load_SE.shape[-1] * (f_SE * P_SE).sum(-1)
    diluted = (stats['tokens'] / jnp.maximum(stats['length'], 1)) ** 2
    return loss_S * diluted if self.over_padding else loss_S
