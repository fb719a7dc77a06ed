"""Seating: which edges of a group get a row at their expert."""

import jax
import jax.numpy as jnp

from moe_jax import types
from moe_jax.errors import UserError
from moe_jax.kernels import gates


def seat(
  routing: types.Routing, capacity: tuple[tuple[int, int], ...], mask_T=None
) -> types.Seated:
  """Decides which edges of one group get a row at their expert.

  Edges queue at their expert by `priority_N`, ties in storage order; those
  past the expert's capacity are dropped. One sort, no [N, E] array.

  Args:
    routing: one group, N edges.
    capacity: ((rows, experts), ...), as in Seated.
    mask_T: bool, False on padding, to tell its edges from those that the
      router sent to nobody; None is no padding.
  """
  if routing.first_fit:
    routing = _first_fit(routing, capacity)
  expert_N = routing.expert_N
  order_N, count, start, slot_N = _queue(routing)
  rows_N = _rows(capacity)[expert_N]
  cause_N = jnp.where(slot_N < rows_N, types.KEPT, types.CAPACITY)
  nobody_N = jnp.full_like(cause_N, types.UNSENT)
  if mask_T is not None:
    nobody_N = jnp.where(mask_T[routing.token_N], nobody_N, types.PADDING)
  E = routing.num_experts
  cause_N = jnp.where(expert_N < E, cause_N, nobody_N).astype(jnp.int32)
  if routing.renormalize_kept:
    routing = _renormalize(routing, cause_N == types.KEPT)
  return types.Seated(
    routing, cause_N, slot_N, order_N, start[:E], count[:E], capacity
  )


def sent(seated: types.Seated) -> types.Seated:
  """What a dispatch sees: without the last `num_local` experts."""
  r = seated.routing
  if not r.num_local:
    return seated
  E = r.num_experts - r.num_local
  local_N = r.expert_N >= E
  cause_N = jnp.where(
    local_N & (seated.cause_N == types.KEPT), types.LOCAL, seated.cause_N
  )
  experts, capacity = E, []
  for rows, count in seated.capacity:
    capacity.append((rows, min(count, experts)))
    experts -= capacity[-1][1]
  return seated.replace(
    routing=r.replace(
      expert_N=jnp.minimum(r.expert_N, E), num_experts=E, num_local=0
    ),
    cause_N=cause_N,
    start_E=seated.start_E[..., :E],
    count_E=seated.count_E[..., :E],
    capacity=tuple(c for c in capacity if c[1]),
  )


def _queue(routing: types.Routing):
  """Edges by expert and priority; length, start and places of the queues.

  Queue E holds those who go to nobody, behind all others.
  """
  E, expert_N = routing.num_experts, routing.expert_N
  N = expert_N.shape[0]
  place_N = jnp.arange(N, dtype=jnp.int32)
  if routing.priority_N is not None:
    keys = (expert_N, routing.priority_N)
    *_, order_N = jax.lax.sort((*keys, place_N), num_keys=2)
  elif (E + 1) * N < 2**31:  # one array sorts four times as fast as two
    order_N = jnp.sort(expert_N * N + place_N, stable=False) % N
  else:
    _, order_N = jax.lax.sort((expert_N, place_N), num_keys=1)
  count = jnp.zeros(E + 1, jnp.int32).at[expert_N].add(1)
  start = jnp.cumsum(count) - count
  slot_N = jnp.zeros_like(place_N)
  slot_N = slot_N.at[order_N].set(place_N - start[expert_N[order_N]])
  return order_N, count, start, slot_N


def _rows(capacity) -> jax.Array:
  """Capacities, 0 for nobody."""
  return types.rows_of_experts((*capacity, (0, 1)))


def _first_fit(routing: types.Routing, capacity) -> types.Routing:
  """Leaves each token the first of its choices that has room, if any.

  Round k seats the k-th choices of those who are not seated yet, on what the
  rounds before left. A choice that was tried and found no room stays, to be
  counted as dropped where it is the token's last; the choices that were not
  needed go to nobody.
  """
  E, K = routing.num_experts, routing.choices
  if K is None:
    raise UserError('first_fit needs edges stored as K blocks of T')
  expert_KT = routing.expert_N.reshape(K, -1)
  priority = routing.priority_N
  taken_E = jnp.zeros(E + 1, jnp.int32)
  free_T = jnp.ones(expert_KT.shape[1], bool)
  tried, late = [], []
  for k in range(K):
    expert_T = jnp.where(free_T, expert_KT[k], E)
    one_round = types.Routing(
      token_N=None,
      expert_N=expert_T,
      weight_N=None,
      priority_N=None if priority is None else priority.reshape(K, -1)[k],
      num_experts=E,
    )
    *_, slot_T = _queue(one_round)
    room_T = _rows(capacity)[expert_T] - taken_E[expert_T]
    seated_T = slot_T < room_T
    taken_E = taken_E.at[expert_T].add(seated_T.astype(jnp.int32))
    free_T &= ~seated_T
    last = k == K - 1
    tried.append(expert_T if last else jnp.where(seated_T, expert_T, E))
    late.append(~seated_T)
  # Whoever got a seat here keeps it.
  return routing.replace(
    expert_N=jnp.concatenate(tried),
    priority_N=jnp.concatenate(late).astype(jnp.int32),
  )


def _renormalize(routing: types.Routing, kept_N: jax.Array) -> types.Routing:
  if routing.choices is None:
    raise UserError('renormalize_kept needs edges stored as K blocks of T')
  by_choice = lambda v_N: v_N.reshape(routing.choices, -1)
  # A token without a kept edge has no weights to divide: they are 0.
  if routing.log_weight_N is None:
    weight_N = jnp.where(kept_N, routing.weight_N, 0.0)
    weight_KT = gates.shares(by_choice(weight_N), axis=0)
  else:
    log_N = routing.log_weight_N
    used_KT = by_choice(kept_N & (log_N > -jnp.inf))
    weight_KT = gates.shares_of_logs(by_choice(log_N), used_KT, axis=0)
  return routing.replace(weight_N=weight_KT.reshape(-1))
