"""Seats of simulated tokens, by a model's own router and seating."""

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax import types
from moe_jax.dispatch import base
from moe_jax.errors import UserError
from moe_jax.layers import moe
from moe_jax.planning import loads
from moe_jax.seating import seat as seating

# Logits of all simulated groups together.
_LOGITS, _GROUPS = 2**24, 32


def _context(router, T: int, E: int, key) -> types.Context:
  return types.Context(
    key=key,
    mask_T=jnp.ones(T, bool),
    selection_bias_E=jnp.zeros(E),
    carry=router.init_carry(T, E),
    train=True,
  )


def simulate(
  layer: moe.MoE, T: int, mean_QE: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Routes and seats groups of random tokens, as in training.

  Args:
    layer: whose router, seating and capacity are used.
    T: tokens of a group.
    mean_QE: mean logits of the experts, of several layers Q.
    seed: of the tokens and of the router's noise.

  Returns:
    int [Q, G, E], rows that got a seat, and assignments of first to last
    choices that wanted one; int [Q, G], assignments dropped for capacity.

  Raises:
    ValueError: a router that is more than one matrix [D, E].
  """
  Q, E = mean_QE.shape
  router, C = layer.router, layer.rows(T, layer.capacity_factor)
  params = jax.eval_shape(lambda: router.init(jax.random.key(0), E, E))
  if not isinstance(params, dict) or set(params) != {'kernel'}:
    raise UserError(
      f'the router {type(router).__name__} cannot be simulated: its logits are '
      'more than a product with one matrix'
    )
  G = min(_GROUPS, max(2, _LOGITS // (Q * T * E)))

  @jax.jit
  def seats(logits_TE, key):
    ctx = _context(router, T, E, key)
    # The tokens are their logits.
    r = router({'kernel': jnp.eye(E)}, logits_TE, ctx)
    wanted_E = jnp.zeros(E + 1, jnp.int32).at[r.expert_N].add(1)[:E]
    seated = seating.seat(layer.seating(r, key), ((C, E),), ctx.mask_T)
    dropped = (seated.cause_N == types.CAPACITY).sum()
    return base.kept_counts(seated), wanted_E, dropped

  rng, found = np.random.default_rng(seed), []
  for q in range(Q):
    for g in range(G):
      tokens_TE = loads.logits(mean_QE[q], T, rng)
      key = jax.random.fold_in(jax.random.key(seed), q * G + g)
      found.append(jax.device_get(seats(tokens_TE, key)))
  kept, wanted, dropped = (np.stack(v) for v in zip(*found))
  shape = lambda v: v.reshape(Q, G, *v.shape[1:])
  return shape(kept), shape(wanted), shape(dropped)
