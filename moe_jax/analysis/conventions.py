"""What an MoE layer's conventions make of the same logits.

Two papers that print 'capacity factor 1.25' or 'balance loss 1.02' may mean
different things. `measure` runs the routing half of a layer (router, seating,
balancing rules) on logits that are given, without tokens and experts.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax import types
from moe_jax.balancing import base as balancing
from moe_jax.layers import moe as moe_layer
from moe_jax.seating import seat as seating


def measure(
  layer: moe_layer.MoE, logits_TE: np.ndarray, mask_T: np.ndarray
) -> dict[str, Any]:
  """The routing of one group, at the training capacity and without noise.

  Args:
    layer: of E experts, with a router of one [D, E] matrix.
    logits_TE: f32, what the router is made to compute.
    mask_T: bool, False on padding.

  Returns:
    'capacity': rows of an expert; 'kept', 'dropped': assignments of real
    tokens; 'weight_TK': combine weights, 0 where dropped; 'losses': unweighted,
    by rule; 'loss': their weighted sum.
  """
  T, E = logits_TE.shape
  mask_T = jnp.asarray(mask_T)
  routed_T = jnp.ones(T, bool) if layer.route_padding else mask_T
  ctx = types.Context(
    key=None, mask_T=routed_T, selection_bias_E=jnp.zeros(E, jnp.float32)
  )
  # With the identity for a matrix, tokens are logits.
  params = {'kernel': jnp.eye(E, dtype=jnp.float32)}
  r = layer.router(params, jnp.asarray(logits_TE, jnp.float32), ctx)
  C = layer.rows(T, layer.capacity_factor)
  seated = seating.seat(layer.seating(r), ((C, E),), routed_T)
  one_group = jax.tree.map(lambda v: v[None], r)
  loss, losses, _ = balancing.evaluate(
    layer.balance, one_group, routed_T[None], 1, (), {}
  )
  kept_N = seated.kept_N & mask_T[r.token_N]
  dropped_N = (seated.cause_N == types.CAPACITY) & mask_T[r.token_N]
  weight_N = jnp.where(kept_N, seated.routing.weight_N, 0.0)
  return {
    'capacity': C,
    'kept': int(kept_N.sum()),
    'dropped': int(dropped_N.sum()),
    'weight_TK': np.asarray(weight_N.reshape(r.choices, T).T),
    'losses': {k: float(v) for k, v in losses.items()},
    'loss': float(loss),
  }
