"""Sums that tell how well a layer routes, for every router.

`analysis.health` makes rates of them: a sum over micro-batches, layers or steps
comes first, the division last.
"""

import jax
import jax.numpy as jnp

from moe_jax import types
from moe_jax.balancing import base as balancing

# The histogram of experts used by a token: 0 to 15, and more.
USED = 17


def sums(
  r: types.Routing,
  cause_GN: jax.Array,
  bias_E: jax.Array,
  all_: balancing.Sums,
) -> dict[str, jax.Array]:
  """Sums over the real tokens of a device.

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
