"""Who finds no seat among recorded choices, at several capacities at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax import types
from moe_jax.seating import orders, seat as seating


def lost(
  order: orders.Order,
  expert_nK: np.ndarray,
  weight_nK: np.ndarray,
  rows_FE: np.ndarray,
  groups: tuple[int, int],
) -> np.ndarray:
  """int [n, F + 1]: a token's choices without a seat, last all its choices.

  Args:
    order: who is seated first, from `orders.build`; where random, by position,
      as in evaluation.
    expert_nK: of a layer, ranked; -1 is nobody.
    weight_nK: combine weights.
    rows_FE: seats of each expert at each of F capacities.
    groups: (G, T), how many of how many tokens; n is at most G * T.
  """
  (G, T), (n, K) = groups, expert_nK.shape
  pad = (0, G * T - n), (0, 0)
  grouped = lambda v, empty: np.pad(v, pad, constant_values=empty).reshape(
    G, T, K
  )
  expert_GTK, weight_GTK = grouped(expert_nK, -1), grouped(weight_nK, 0)
  place = _places(order, rows_FE.shape[1], expert_GTK, weight_GTK)
  place_nK, real_nK = np.asarray(place).reshape(-1, K)[:n], expert_nK >= 0
  late = [real_nK & (place_nK >= rows_E[expert_nK]) for rows_E in rows_FE]
  return np.stack([v.sum(-1) for v in (*late, real_nK)], -1)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _places(order, E, expert_GTK, weight_GTK):
  """int32 [G, T, K], places in the experts' queues, of any length."""
  _, T, K = expert_GTK.shape
  edges = lambda v_GTK: jnp.swapaxes(v_GTK, 1, 2).reshape(-1, K * T)

  def of_group(expert_N, weight_N):
    routing = types.Routing(
      token_N=jnp.tile(jnp.arange(T, dtype=jnp.int32), K),
      expert_N=jnp.where(expert_N < 0, E, expert_N).astype(jnp.int32),
      weight_N=weight_N.astype(jnp.float32),
      num_experts=E,
      choices=K,
    )
    return seating.seat(order(routing), ((K * T, E),)).slot_N

  slot_GN = jax.vmap(of_group)(edges(expert_GTK), edges(weight_GTK))
  return jnp.swapaxes(slot_GN.reshape(-1, K, T), 1, 2)
