"""Noisy top-k gating: a learned noise decides, softmax over the kept.

Noam Shazeer et al., "Outrageously Large Neural Networks: The Sparsely-Gated
Mixture-of-Experts Layer", ICLR 2017, arXiv:1701.06538, section 2.1, equations 3
to 5, and appendix A, equations 8 to 10 for the smooth load.

In training h = x W_g + eps softplus(x W_noise), eps ~ N(0, 1) by token and
expert; the k largest of h are kept and their softmax is the combine weight.
Both matrices start at zero (appendix A): every expert is as likely then. The
smooth load of an expert is the probability that it would be kept if its own
noise were drawn again, the others' held fixed: its bar is the k-th largest of h
among the OTHER experts. Pair it with `importance_loss` and `load_loss`, 0.1
each for the paper's language models, 0.01 for translation.

Differs from the paper: softplus has a floor, 0.01, as in most code; without
noise (evaluation) the smooth load stays that of the deviation which training
would use. In a decoder binding capacity leaks: see `top_k`.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.errors import UserError
from moe_jax.routers import base


@registry.register
@dataclasses.dataclass(frozen=True)
class NoisyTopK(base.Router):
  """k experts a token, below E; noise_floor: least deviation of the noise."""

  k: int = 4
  noise_floor: float = 0.01
  has_matrix = True

  def __post_init__(self):
    base.check_k('noisy_top_k', self.k)
    if self.k == 1:
      raise UserError(
        'noisy_top_k: k=1 makes every weight 1 and leaves the router without a '
        'gradient; valid: from 2'
      )
    if not self.noise_floor > 0:
      raise UserError(
        f'noisy_top_k: noise_floor={self.noise_floor} must be above 0'
      )

  def check(self, E):
    base.check_k('noisy_top_k', self.k, E - 1)  # the bar needs one more

  def init(self, key, E, D):
    del key
    return {'kernel': jnp.zeros((D, E)), 'noise': jnp.zeros((D, E))}

  def __call__(self, params, x_TD, ctx):
    clean_TE = h_TE = base.linear_logits(params, x_TD)
    T, E = h_TE.shape
    noise_TE = base.linear_logits({'kernel': params['noise']}, x_TD)
    std_TE = jax.nn.softplus(noise_TE) + self.noise_floor
    if ctx.train:
      eps_TE = jax.random.normal(base.noise_key(ctx, 'gaussian'), h_TE.shape)
      h_TE += eps_TE * std_TE
    # Of the k + 1 largest, the kept have the last for their bar, the others
    # the one before. By index: a sum that is compiled twice may round twice,
    # and then an expert is not equal to itself.
    top_TK, index_TK = jax.lax.top_k(h_TE, self.k + 1)
    row_T1 = jnp.arange(T)[:, None]
    bar_TE = jnp.broadcast_to(top_TK[:, -2:-1], (T, E))
    bar_TE = bar_TE.at[row_T1, index_TK[:, :-1]].set(top_TK[:, -1:])
    scores_TE, solved_E = base.biased(h_TE, self.k, ctx)
    _, expert_TK = jax.lax.top_k(scores_TE, self.k)
    weight_TK = jax.nn.softmax(jnp.take_along_axis(h_TE, expert_TK, -1))
    gates_TE = jnp.zeros((T, E)).at[row_T1, expert_TK].set(weight_TK)
    return base.from_choices(
      *(expert_TK, weight_TK, ctx, E),
      logits_TE=h_TE,
      **base.normalized(h_TE),
      terms={
        'clean_logits': clean_TE,
        'gates': gates_TE,
        'smooth_load': jax.scipy.stats.norm.cdf((clean_TE - bar_TE) / std_TE),
      },
      solved_E=solved_E,
    )

  def experts_per_token(self, E):
    return float(self.k)
