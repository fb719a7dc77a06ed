"""V-MoE routing: top-k of a noisy softmax, raw weights.

Carlos Riquelme et al., "Scaling Vision with Sparse Mixture of Experts", NeurIPS
2021, arXiv:2106.05974, section 2.1 and appendix A: in training Gaussian noise
of deviation noise_std / E is added to the logits, the combine weights are the
noisy probabilities, and two losses balance: `importance_loss`, which sees the
clean probabilities, and `load_loss`, which sees the probability that an expert
would be chosen if its noise were drawn again. Vision tokens have no order that
seating could leak, but in a decoder top-k may leak: see `top_k`.

Without noise (evaluation) a token is chosen or it is not, and the smooth load
stays that of the deviation which training uses.
"""

import dataclasses

import jax

from moe_jax import registry
from moe_jax.errors import UserError
from moe_jax.kernels import order_statistics
from moe_jax.routers import base


@registry.register
@dataclasses.dataclass(frozen=True)
class Vmoe(base.Choosing, base.Linear):
  """k experts a token; noise_std: times 1 / E; else as `base.Linear`."""

  k: int = 2
  noise_std: float = 1.0

  def __post_init__(self):
    super().__post_init__()
    if not self.noise_std > 0:
      raise UserError(
        f'vmoe: noise_std={self.noise_std} must be above 0; without noise this '
        'is top_k(renormalize=False)'
      )

  def __call__(self, params, x_TD, ctx):
    found, E = self.affinities(params, x_TD, ctx), ctx.num_experts
    terms, clean_TE = found['terms'], found['logits_TE']
    if ctx.train:
      terms.setdefault('clean_logits', clean_TE)
      key = base.noise_key(ctx, 'gaussian')
      noise_TE = jax.random.normal(key, clean_TE.shape)
      found |= self.softmax(clean_TE + self.noise_std / E * noise_TE, x_TD)
    # The k-th largest noisy logit is the bar, for the chosen experts too.
    bar_T1 = order_statistics.top_k(found['logits_TE'], self.k)[0][:, -1:]
    terms['smooth_load'] = jax.scipy.stats.norm.cdf(
      (clean_TE - bar_T1) * E / self.noise_std
    )
    chosen = self.choose(found, ctx, self.k)
    return chosen.routing(chosen.of(found['probs_TE']), **found)
