"""The experts that the tokens of a group chose, and those that were given.

`Context.given_TK` takes the place of a choice (replay): everything else, the
weights above all, stays the router's. A place that names no expert is filled
as the router would, best first, so that weights which are shares of all k are
those of the run that was recorded; it is not sent.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from moe_jax import types
from moe_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chosen:
  """The experts that the tokens of a group chose, K each.

  Attributes:
    expert_TK: int32, the best first; E is nobody.
    ctx: of the group.
    score_TK: f32, what they were chosen by, if they were.
    solved_E: as in `types.Routing`.
    named_TK: bool, which were given; None where the router chose.
  """

  expert_TK: jax.Array
  ctx: types.Context
  score_TK: jax.Array | None = None
  solved_E: jax.Array | None = None
  named_TK: jax.Array | None = None

  def of(self, v_TE: jax.Array) -> jax.Array:
    """[T, K], the chosen experts' entries, with their gradient."""
    return jnp.take_along_axis(v_TE, self.expert_TK, -1)

  def routing(
    self,
    weight_TK: jax.Array,
    used_TK: jax.Array | None = None,
    log_weight_TK: jax.Array | None = None,
    chosen_TK: jax.Array | None = None,
    **rest: Any,
  ) -> types.Routing:
    """The edges: all first choices, then all second ones; no padding.

    The seating order, too, of every published top-k code.

    Args:
      weight_TK: f32 combine weights.
      used_TK: bool, the choices that are sent; None is all. Of those that were
        given all are.
      log_weight_TK, chosen_TK: `Routing.log_weight_N`, `Routing.chosen_N`.
      **rest: further fields of Routing.
    """
    E, (T, K) = self.ctx.num_experts, self.expert_TK.shape
    if self.named_TK is not None:
      mine_TK = True if used_TK is None else used_TK
      used_TK = jnp.where(own(self.ctx), mine_TK, self.named_TK)
    real_T1 = self.ctx.mask_T[:, None]
    sent_TK = real_T1 if used_TK is None else real_T1 & used_TK
    edges = lambda v_TK, empty, at_TK=real_T1: (
      None if v_TK is None else jnp.where(at_TK, v_TK, empty).T.reshape(-1)
    )
    return types.Routing(
      token_N=jnp.tile(jnp.arange(T, dtype=jnp.int32), K),
      expert_N=edges(self.expert_TK, E, sent_TK).astype(jnp.int32),
      weight_N=edges(weight_TK, 0.0, sent_TK),
      log_weight_N=edges(log_weight_TK, -jnp.inf),
      chosen_N=edges(chosen_TK, E),
      solved_E=self.solved_E,
      num_experts=E,
      choices=K,
      given=self.named_TK is not None,
      **rest,
    )


def best(
  scores_TE: jax.Array,
  ctx: types.Context,
  k: int,
  solved_E: jax.Array | None = None,
) -> Chosen:
  """The k experts of the largest scores, or those that were given."""
  if ctx.given_TK is not None:
    named_TE = members(ctx)
    rest_TE = jnp.where(named_TE, -jnp.inf, scores_TE)
    given_TK, named_TK = _places(ctx, k)
    _, rest_TK = jax.lax.top_k(rest_TE, k)
    place_TK = jnp.maximum(jnp.cumsum(~named_TK, -1) - 1, 0)
    rest_TK = jnp.take_along_axis(rest_TK, place_TK, -1)
    expert_TK = jnp.where(named_TK, given_TK, rest_TK)
    score_TK = jnp.take_along_axis(scores_TE, expert_TK, -1)
    return Chosen(expert_TK, ctx, score_TK, solved_E, named_TK)
  if k == 1:  # the largest alone needs no sort
    best_T1 = jnp.argmax(scores_TE, -1, keepdims=True)
    return Chosen(best_T1, ctx, scores_TE.max(-1, keepdims=True), solved_E)
  score_TK, expert_TK = jax.lax.top_k(scores_TE, k)
  return Chosen(expert_TK, ctx, score_TK, solved_E)


def fixed(
  expert_TK: jax.Array, ctx: types.Context, solved_E: jax.Array | None = None
) -> Chosen:
  """Experts that no score ranks, or those that were given."""
  if ctx.given_TK is None:
    return Chosen(expert_TK, ctx, None, solved_E)
  given_TK, named_TK = _places(ctx, expert_TK.shape[1])
  expert_TK = jnp.where(named_TK, given_TK, expert_TK)
  return Chosen(expert_TK, ctx, None, solved_E, named_TK)


def best_tokens(score_ET: jax.Array, ctx: types.Context, C: int) -> jax.Array:
  """int32 [E, C]: each expert's tokens of the largest scores, best first.

  Where experts were given, the tokens that have them come before all others,
  which `members` tells from them.
  """
  score_ET = jax.lax.stop_gradient(score_ET)
  if ctx.given_TK is not None:
    open_TE = members(ctx) | own(ctx)
    score_ET = jnp.where(open_TE.T, score_ET, -jnp.inf)
  return jax.lax.top_k(score_ET, C)[1]


def members(ctx: types.Context) -> jax.Array:
  """bool [T, E]: the experts that a token was given."""
  T, E = len(ctx.given_TK), ctx.num_experts
  at_TK = jnp.where(_names(ctx, ctx.given_TK), ctx.given_TK, E)
  none_TE = jnp.zeros((T, E), bool)
  return none_TE.at[jnp.arange(T)[:, None], at_TK].set(True, mode='drop')


def sent(r: types.Routing, T: int) -> jax.Array:
  """bool [T, E]: the experts that a group's tokens are sent to."""
  none_TE = jnp.zeros((T, r.num_experts), bool)
  return none_TE.at[r.token_N, r.expert_N].set(True, mode='drop')


def own(ctx: types.Context) -> jax.Array:
  """bool [T, 1]: tokens for which the router chooses all the same."""
  return (ctx.given_TK == types.OWN).any(-1, keepdims=True)


def _names(ctx, given_TK):
  inside_TK = (given_TK >= 0) & (given_TK < ctx.num_experts)
  return inside_TK & ~own(ctx)


def _places(ctx, k):
  """int32, bool [T, k]: what was given, and where it names an expert."""
  more = k - ctx.given_TK.shape[1]
  if more < 0:
    raise UserError(
      f'{ctx.given_TK.shape[1]} experts of a token were given to a router that '
      f'chooses {k}'
    )
  given_TK = jnp.pad(ctx.given_TK, ((0, 0), (0, more)), constant_values=-1)
  return given_TK, _names(ctx, given_TK)
