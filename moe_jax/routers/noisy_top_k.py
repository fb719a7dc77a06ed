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
from moe_jax.kernels import order_statistics
from moe_jax.routers import base


@registry.register
@dataclasses.dataclass(frozen=True)
class NoisyTopK(base.Choosing):
  """k experts a token, below E; noise_floor: least deviation of the noise."""

  k: int = 4
  noise_floor: float = 0.01
  least_k, has_matrix = 2, True

  def __post_init__(self):
    super().__post_init__()
    if not self.noise_floor > 0:
      raise UserError(
        f'noisy_top_k: noise_floor={self.noise_floor} must be above 0'
      )

  def limit(self, E):
    return E - 1  # the bar needs one more

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
    top_TK, index_TK = order_statistics.top_k(h_TE, self.k + 1)
    row_T1 = jnp.arange(T)[:, None]
    bar_TE = jnp.broadcast_to(top_TK[:, -2:-1], (T, E))
    bar_TE = bar_TE.at[row_T1, index_TK[:, :-1]].set(top_TK[:, -1:])
    chosen = base.choose(h_TE, ctx, self.k)
    weight_TK = jax.nn.softmax(chosen.of(h_TE))
    gates_TE = jnp.zeros((T, E)).at[row_T1, chosen.expert_TK].set(weight_TK)
    terms = {
      'clean_logits': clean_TE,
      'gates': gates_TE,
      'smooth_load': jax.scipy.stats.norm.cdf((clean_TE - bar_TE) / std_TE),
    }
    return chosen.routing(weight_TK, **base.affinities(h_TE), terms=terms)
