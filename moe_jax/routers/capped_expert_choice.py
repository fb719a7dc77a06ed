"""Expert choice where no token is taken by more than `cap` experts.

Yanqi Zhou et al., "Mixture-of-Experts with Expert Choice Routing", NeurIPS
2022, arXiv:2202.09368, section 3.3: A [E, T] maximises <S, A> + entropy H(A), S
being the probabilities, with the tokens of an expert summing to C, the experts
of a token to at most `cap`, and entries in [0, 1]; each expert takes the C
tokens of its largest A, with the weights of S. Solved by Dykstra's alternating
projections (Kullback-Leibler), in logarithms.

The paper's 100 iterations at entropy 0.001 are a limit, not convergence: near
ties leave some tokens above the cap; more entropy converges faster and rounds
worse. Where padding leaves too few tokens for C under the cap, the cap gives
way. Otherwise as `expert_choice`: not causal, no selection bias.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.errors import UserError
from moe_jax.routers import base


@registry.register
@dataclasses.dataclass(frozen=True)
class CappedExpertChoice(base.Matrix):
  """Expert choice with at most `cap` experts a token, up to convergence.

  Attributes:
    choices: c, mean experts of a token.
    cap: at least `choices`.
    entropy, iterations: of the solver.
  """

  choices: float = 2.0
  cap: int = 3
  entropy: float = 0.001
  iterations: int = 100
  causal, compares = False, 'always'

  def __post_init__(self):
    base.check_choices('capped_expert_choice', self.choices)
    if self.cap < self.choices:
      raise UserError(
        f'capped_expert_choice: cap={self.cap} must be at least '
        f'choices={self.choices:g}'
      )
    for name in ('entropy', 'iterations'):
      if not (value := getattr(self, name)) > 0:
        raise UserError(f'capped_expert_choice: {name}={value} is not above 0')

  def check(self, E):
    base.check_choices('capped_expert_choice', self.choices, E)

  def __call__(self, params, x_TD, ctx):
    logits_TE = base.linear_logits(params, x_TD)
    probs_TE = jax.nn.softmax(logits_TE)
    T, E = probs_TE.shape
    rows = base.rows(self.choices, T, E)
    scores_TE = jax.lax.stop_gradient(probs_TE) / self.entropy
    # Finite, since the corrections below subtract it from itself.
    scores_TE = jnp.where(ctx.mask_T[:, None], scores_TE, -1e9)
    reachable = jnp.clip(self.cap * ctx.mask_T.sum() / E, 1, rows)
    plan_ET = self.solve(scores_TE.T, reachable)
    token_EC = base.best_tokens(plan_ET, ctx, rows)
    weight_EC = jnp.take_along_axis(probs_TE.T, token_EC, -1)
    # The best are seated first, which A, 1 for most, does not tell.
    best_EC = jnp.argsort(-jax.lax.stop_gradient(weight_EC), -1)
    take = lambda v: jnp.take_along_axis(v, best_EC, -1)
    return base.from_experts(
      *(take(token_EC), take(weight_EC), ctx),
      logits_TE=logits_TE,
      probs_TE=probs_TE,
    )

  def solve(self, a_ET, rows):
    """log A, from log A without the constraints; `rows` are an expert's."""
    sum_over = lambda v, axis: jax.nn.logsumexp(v, axis, keepdims=True)

    def step(_, state):
      a, by_token, by_entry = state
      a += jnp.log(rows) - sum_over(a, 1)
      before = a + by_token
      a = before + jnp.minimum(jnp.log(self.cap) - sum_over(before, 0), 0)
      by_token = before - a
      before = a + by_entry
      a = jnp.minimum(before, 0)
      return a, by_token, before - a

    state = a_ET, 0 * a_ET, 0 * a_ET
    return jax.lax.fori_loop(0, self.iterations, step, state)[0]

  def experts_per_token(self, E):
    return float(self.choices)
