"""BIP balancing: the dual of the assignment problem, solved at every step.

Yuan Sun et al., "Binary-Integer-Programming Based Algorithm for Expert Load
Balancing in Mixture-of-Experts Models", 2025, arXiv:2502.15451, algorithm 1;
read through a derivation that restates it. Selection is by s - q, where p and q
are the duals of 'K experts a token' and 'K T / E tokens an expert'; T_it times
in turn

  p_t = max(0, (K+1)-th largest of s_t - q)
  q_e = max(0, (floor(K T / E) + 1)-th largest of s_e - p)

each an exact minimum along its coordinates. q is kept for the next step and
for evaluation. The solution comes before selection and sees the whole batch, so
training leaks a little of later tokens; with sigmoid scores the clip at 0
cripples it.

`clip=False, before=False` is quantile balancing (Su 2026, recalled): the duals
may be negative, and the q of the step before selects. Its q follows the batch.

An order statistic of the whole batch is found exactly, whatever the mesh, by
counting: 8 sums of 16 E counts over the devices for each of its digits.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.balancing import base
from moe_jax.errors import UserError
from moe_jax.kernels import order_statistics


@registry.register
@dataclasses.dataclass(frozen=True)
class Bip(base.Balance):
  """iterations: T_it (paper: 2 to 14). clip, before: as above."""

  iterations: int = 4
  clip: bool = True
  before: bool = True
  weight: float = dataclasses.field(default=0.0, init=False)
  scope: str = dataclasses.field(default='global', init=False)
  solves = True

  def check(self):
    if not isinstance(self.iterations, int) or self.iterations < 1:
      raise UserError(
        f'bip: iterations={self.iterations!r} must be a whole number from 1'
      )

  def stats(self, sums):
    solved_GE = sums.routing.solved_E
    if solved_GE is None:  # evaluation, where nothing is updated
      solved_GE = jnp.zeros((1, sums.routing.num_experts))
    groups = jnp.full(1, solved_GE.shape[0], jnp.float32)
    return {'solved': solved_GE.sum(0, keepdims=True), 'groups': groups}

  def init(self, E):
    return jnp.zeros(E, jnp.float32)

  def selection_bias(self, state):
    return state

  def solve(self, state, scores_TE, mask_T, K, total):
    E = scores_TE.shape[1]
    if K >= E:
      raise UserError(f'bip: {K} choices of {E} experts leave nothing to solve')
    tokens = total(mask_T.sum(dtype=jnp.int32))
    rank, floor = K * tokens // E + 1, 0.0 if self.clip else -jnp.inf

    def iteration(_, q_E):
      p_T = order_statistics.top_k(scores_TE - q_E, K + 1)[0][:, -1]
      rest_TE = scores_TE - jnp.maximum(p_T, floor)[:, None]
      found_E = order_statistics.largest(rest_TE, mask_T, rank, total)
      return jnp.where(tokens > 0, jnp.maximum(found_E, floor), q_E)

    new_E = -jax.lax.fori_loop(0, self.iterations, iteration, -state)
    return (new_E if self.before else state), new_E

  def update(self, state, stats):
    return stats['solved'] / jnp.maximum(stats['groups'], 1)[..., None]
