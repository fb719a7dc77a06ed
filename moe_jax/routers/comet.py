"""COMET: k decision trees with smooth splits; their leaves are the experts.

Shibal Ibrahim et al., "COMET: Learning Cardinality Constrained Mixture of
Experts with Trees and Local Search", KDD 2023, arXiv:2306.02824, section 3. A
tree has E - 1 splits in heap order (children 2i + 1, left, and 2i + 2; nodes
from E - 1 on are the experts in order); a split sends the smooth step of a
projection to the left and the rest to the right. Weights are the softmax over
the leaves of all trees of a linear score plus the log of the leaf's reach,
summed over trees: they sum to 1. Once all splits are saturated at most k
experts are used; until then all are, at a dense layer's cost. Pair it with
`selector_loss`, which saturates them. Splits start uniform within width / 100,
biases too. The paper's learned permutation of experts is not here.

In a decoder binding capacity leaks: see `top_k`.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.errors import UserError
from moe_jax.kernels import gates
from moe_jax.routers import base


@registry.register
@dataclasses.dataclass(frozen=True)
class Comet(base.Router):
  """k: trees. width: of the smooth step, in units of the projection."""

  k: int = 2
  width: float = 1.0

  def __post_init__(self):
    base.check_k('comet', self.k)
    if not self.width > 0:
      raise UserError(f'comet: width={self.width} must be above 0')

  def check(self, E):
    if E < 2:
      raise UserError(f'comet: num_experts={E} must be at least 2')

  def init(self, key, E, D):
    key_s, key_b, key_l = jax.random.split(key, 3)
    edge, n = self.width / 100, self.k * (E - 1)
    draw = lambda key, *shape: jax.random.uniform(
      key, shape, minval=-edge, maxval=edge
    )
    return {
      'splits': draw(key_s, D, n),
      'split_bias': draw(key_b, n),
      'leaves': base.init_linear(key_l, self.k * E, D)['kernel'],
    }

  def __call__(self, params, x_TD, ctx):
    T, E = len(x_TD), ctx.num_experts
    z = base.linear_logits({'kernel': params['splits']}, x_TD)
    z_TKN = (z + params['split_bias']).reshape(T, self.k, E - 1)
    left_TKN = gates.smooth_step(z_TKN, self.width)
    right_TKN = gates.smooth_step(-z_TKN, self.width)
    reach = [jnp.ones((T, self.k))]
    for i in range(E - 1):
      reach += [reach[i] * left_TKN[..., i], reach[i] * right_TKN[..., i]]
    reach_TKE = jnp.stack(reach[E - 1 :], -1)
    score = base.linear_logits({'kernel': params['leaves']}, x_TD)
    score_TKE = score.reshape(T, self.k, E)
    # exp(score + log reach), without the log, whose gradient at 0 is infinite;
    # over the largest, which has it, but no gradient.
    reached_TKE = reach_TKE >= gates.LEAST
    log_TKE = score_TKE + jnp.log(jnp.maximum(reach_TKE, gates.LEAST))
    top = jnp.where(reached_TKE, jax.lax.stop_gradient(log_TKE), -jnp.inf)
    top = top.max((1, 2), keepdims=True)
    score_TKE = jnp.where(reached_TKE, score_TKE - top, -jnp.inf)
    mass_TKE = reach_TKE * jnp.exp(score_TKE)
    mass_TE = mass_TKE.sum(1)
    entropy_TKE = -reach_TKE * jnp.log(reach_TKE + 1e-6)
    gates_TE = mass_TE / mass_TE.sum(-1, keepdims=True)
    probs_TE = gates.shares(gates_TE)
    used = lambda scores_TE: jnp.where(gates_TE > 0, scores_TE, -jnp.inf)
    chosen = base.choose(gates_TE, ctx, E, then=used)
    return chosen.routing(
      chosen.of(gates_TE),
      chosen.score_TK > -jnp.inf,
      logits_TE=jnp.log(jnp.maximum(probs_TE, 1e-6)),
      probs_TE=probs_TE,
      terms={'selector_entropy': entropy_TKE.sum((1, 2))},
    )

  def experts_per_token(self, E):
    """All: so it starts. Saturated, it is at most k."""
    return float(E)
