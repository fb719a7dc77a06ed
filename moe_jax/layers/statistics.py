"""What a layer tells of its routing: losses, loads, causes, health.

All are sums; `training.health` makes rates of them. A sum over micro-batches,
layers or steps comes first, the division last.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from moe_jax import types
from moe_jax.balancing import base as balancing
from moe_jax.kernels import order_statistics
from moe_jax.parallel import axes as axes_lib, collectives

# The histogram of experts used by a token: 0 to 15, and more.
USED = 17


def of(
  rules: Sequence[balancing.Balance],
  states: dict[str, Any],
  router: Any,
  r: types.Routing,
  cause_GN: jax.Array,
  ctx: types.Context,
  tokens: types.Tokens,
  axes: axes_lib.Axes,
) -> types.MoEAux:
  """The MoEAux of all devices, less the record of edges.

  Args:
    rules, states: the layer's balancing rules and their states.
    router: its router's parameters, the same on all devices.
    r: with leading axis G.
    cause_GN: int32, what the dispatch returned.
    ctx: that the routers had, leaves [G, ...].
    tokens: of this device, leaves [B, L, ...].
    axes: mesh axes.
  """
  mask_GT = ctx.mask_T
  loss, losses, stats = balancing.evaluate(
    rules,
    r,
    mask_GT,
    tokens.mask.shape[0],
    axes.batch,
    states,
    tokens.segments,
    router,
  )
  all_ = balancing.Sums(r, mask_GT, 1)
  cause = jnp.stack([(cause_GN == c).sum() for c in range(len(types.CAUSES))])
  load_E, cause, health = collectives.psum(
    (
      all_.load()[0],
      cause.astype(jnp.int32),
      sums(r, cause_GN, ctx.selection_bias_E, all_),
    ),
    axes.batch,
    name='moe_stats',
  )
  return types.MoEAux(loss, losses, stats, load_E, cause, health, {})


def edges(
  r: types.Routing, seated: types.Seated, cause_GN: jax.Array, T: int
) -> dict[str, jax.Array]:
  """`MoEAux.record`: as routed, by the weights of the seated.

  Returns:
    [G, N] int32 'token', 'expert', 'cause', f32 'weight'. Where edges are not
    `choices` blocks, int32 'rank', the edge's among those of its token, the
    largest weight first, N at nobody's. [G, T] f32, where there are affinities,
    'entropy' in nats; 'margin', of the k-th affinity over the next, where every
    token has k of more experts, else NaN.
  """
  found = {
    'token': r.token_N,
    'expert': r.expert_N,
    'weight': seated.routing.weight_N,
    'cause': cause_GN,
  }
  if r.choices is None:
    rank = functools.partial(_ranks, E=r.num_experts, T=T)
    found['rank'] = jax.vmap(rank)(r.token_N, r.expert_N, found['weight'])
  if r.probs_TE is not None:
    found['entropy'] = balancing.entropy(r.probs_TE)
    if r.choices and r.choices < r.num_experts and not r.first_fit:
      top, _ = order_statistics.top_k(r.probs_TE, r.choices + 1)
      sent_GN = r.expert_N < r.num_experts
      sent_GT = sent_GN.reshape(-1, r.choices, T).all(1)
      margin_GT = top[..., -2] - top[..., -1]
      found['margin'] = jnp.where(sent_GT, margin_GT, jnp.nan)
  return found


def _ranks(token_N, expert_N, weight_N, E: int, T: int) -> jax.Array:
  """int32 [N], place of an edge among its token's, by weight; N at nobody's."""
  N = token_N.shape[0]
  place_N = jnp.arange(N, dtype=jnp.int32)
  queue_N = jnp.where(expert_N < E, token_N, T)
  *_, order_N = jax.lax.sort((queue_N, -weight_N, place_N), num_keys=2)
  count = jnp.zeros(T + 1, jnp.int32).at[queue_N].add(1)
  start = jnp.cumsum(count) - count
  rank_N = jnp.zeros(N, jnp.int32)
  rank_N = rank_N.at[order_N].set(place_N - start[queue_N[order_N]])
  return jnp.where(queue_N < T, rank_N, N)


def sums(
  r: types.Routing,
  cause_GN: jax.Array,
  bias_E: jax.Array,
  all_: balancing.Sums,
) -> dict[str, jax.Array]:
  """`MoEAux.health`: sums over the real tokens of a device.

  Args:
    r: with leading axis G.
    cause_GN: int32, what the dispatch returned.
    bias_E: f32, selection bias.
    all_: the tokens, as one segment.

  Returns:
    'tokens' f32; 'used' int32 [USED], tokens by the number of experts that
    computed for them; 'bias' f32, the root mean square of the selection bias
    times the tokens; where the router has affinities 'entropy' f32; where it
    has logits 'square' f32 their mean square, 'logsumexp' f32; and where
    experts were given 'given' f32 how many, 'agreed' f32 those among them that
    it would have chosen.
  """
  G, T = all_.mask_GT.shape
  kept_GN = (cause_GN == types.KEPT).astype(jnp.int32)
  token_GN = jnp.arange(G, dtype=jnp.int32)[:, None] * T + r.token_N
  used_T = (
    jnp.zeros(G * T, jnp.int32)
    .at[token_GN.reshape(-1)]
    .add(kept_GN.reshape(-1))
  )
  bin_T = jnp.where(
    all_.mask_GT.reshape(-1), jnp.minimum(used_T, USED - 1), USED
  )
  tokens = all_.count()[0]
  out = {
    'tokens': tokens,
    'used': jnp.zeros(USED + 1, jnp.int32).at[bin_T].add(1)[:-1],
    'bias': tokens * jnp.sqrt(jnp.mean(bias_E**2)),
  }
  if r.probs_TE is not None:
    probs = jax.lax.stop_gradient(r.probs_TE)
    out['entropy'] = all_.tokens(balancing.entropy(probs))[0]
  if r.logits_TE is not None:
    logits = jax.lax.stop_gradient(r.logits_TE)
    out['square'] = all_.tokens((logits**2).mean(-1))[0]
    out['logsumexp'] = all_.tokens(jax.nn.logsumexp(logits, -1))[0]
  for name in ('given', 'agreed'):
    if name in r.terms:
      out[name] = all_.tokens(r.terms[name].astype(jnp.float32))[0]
  return out
