"""Sinkhorn routing (S-BASE): top-k of a softly balanced assignment.

Aidan Clark et al., "Unified Scaling Laws for Routed Language Models", ICML
2022, arXiv:2202.01169, section 3 (recalled, as are the defaults): in training
the logits are scaled by rows and columns until every token sums to 1 and every
expert to T / E of them, and the k largest entries of that plan are chosen; the
combine weights stay those of the logits. Evaluation is greedy, as in BASE. The
scaling by rows does not change a token's order, so that the plan is a bias by
expert, found anew for every group.

Nearly balanced where tokens are decided; capacity still drops. The whole group
is seen: not causal in training. 'sigmoid' weights are Megatron's for k=1.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.errors import UserError
from moe_jax.routers import base

SCORES = {'softmax': jax.nn.softmax, 'sigmoid': jax.nn.sigmoid}


@registry.register
@dataclasses.dataclass(frozen=True)
class Sinkhorn(base.Choosing, base.Matrix):
  """k experts a token.

  Attributes:
    temperature: of the logits in the plan; lower is nearer to BASE's optimum.
    iterations: of the scaling.
    score: what makes weights of the logits, 'softmax' or 'sigmoid'.
  """

  k: int = 1
  temperature: float = 1.0
  iterations: int = 20
  score: str = 'softmax'
  causal, compares = False, 'train'

  def __post_init__(self):
    super().__post_init__()
    if self.score not in SCORES:
      raise UserError(
        f'sinkhorn: score={self.score!r}; valid: {", ".join(SCORES)}'
      )
    if not self.temperature > 0:
      raise UserError(
        f'sinkhorn: temperature={self.temperature} must be above 0'
      )

  def __call__(self, params, x_TD, ctx):
    logits_TE = base.linear_logits(params, x_TD)
    mask_T1 = ctx.mask_T[:, None]
    plan = lambda scores_TE: self.plan(scores_TE / self.temperature, mask_T1)
    options = {'then': plan} if ctx.train else {}
    chosen = base.choose(logits_TE, ctx, self.k, **options)
    weight_TK = chosen.of(SCORES[self.score](logits_TE))
    return chosen.routing(weight_TK, **base.affinities(logits_TE))

  def plan(self, z_TE, mask_T1):
    """Logarithm of the plan, less what is the same for all of a token."""
    share = jnp.log(jnp.maximum(mask_T1.sum(), 1) / z_TE.shape[-1])

    def step(_, scaled_E):
      plan_TE = jax.nn.log_softmax(z_TE + scaled_E)
      plan_TE = jnp.where(mask_T1, plan_TE, -1e9)
      return scaled_E + share - jax.nn.logsumexp(plan_TE, 0)

    return z_TE + jax.lax.fori_loop(0, self.iterations, step, 0 * z_TE[0])
