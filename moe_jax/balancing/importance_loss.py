"""Importance loss: the squared coefficient of variation of summed gates.

Noam Shazeer et al., "Outrageously Large Neural Networks: The Sparsely-Gated
Mixture-of-Experts Layer", ICLR 2017, arXiv:1701.06538, section 4, equations 6
and 7; as in V-MoE (Riquelme et al. 2021, arXiv:2106.05974, appendix A.1, weight
0.005), an expert's importance is the sum of its softmax probabilities over the
tokens, without the router's noise. A router with gates of its own, 0 where an
expert is not chosen, gives them as the term 'gates' (Shazeer's: `noisy_top_k`).
0 for balanced routing. Equal importance is not equal load: pair it with
`load_loss`.
"""

import dataclasses

import jax

from moe_jax import registry
from moe_jax.balancing import base
from moe_jax.errors import UserError


@registry.register
@dataclasses.dataclass(frozen=True)
class ImportanceLoss(base.Balance):
  """weight: of the loss. scope: segments of the sums (V-MoE: the group)."""

  weight: float = 0.005
  scope: str = 'group'

  def stats(self, sums):
    r = sums.routing
    if r.probs_TE is None:
      raise UserError('importance_loss needs a router with probabilities')
    probs_GTE = r.probs_TE
    if 'gates' in r.terms:
      probs_GTE = r.terms['gates']
    elif 'clean_logits' in r.terms:
      probs_GTE = jax.nn.softmax(r.terms['clean_logits'])
    return {'importance': sums.tokens(probs_GTE)}

  def loss(self, stats, state, router):
    return base.squared_cv(stats['importance'])
