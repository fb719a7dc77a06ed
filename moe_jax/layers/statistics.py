"""What a layer tells of its routing: losses, loads, causes, health.

All are sums; `analysis.health` makes rates of them. A sum over micro-batches,
layers or steps comes first, the division last.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from moe_jax import types
from moe_jax.balancing import base as balancing
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
  r: types.Routing, seated: types.Seated, cause_GN: jax.Array
) -> dict[str, jax.Array]:
  """`MoEAux.record`, leaves [G, N]: as routed, by the weights of the seated."""
  return {
    'token': r.token_N,
    'expert': r.expert_N,
    'weight': seated.routing.weight_N,
    'cause': cause_GN,
  }


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
    times the tokens; where the router has affinities 'entropy' f32; and where
    it has logits 'square' f32 their mean square, 'logsumexp' f32.
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
  return out
