"""Sorted rows and two ragged all-to-alls: what the router asks, no padding.

Trevor Gale et al., "MegaBlocks: Efficient Sparse Training with
Mixture-of-Experts", 2022, arXiv:2211.15841: rows sorted by expert. They go to
the devices of their experts, as in MaxText and others, are sorted by expert
there, and come back. A device sends the rows it has, K a token however large
the expert axis.

How many rows will come is not known when the program is compiled: a device's
buffer holds `buffer_factor` times the rows of a balanced load, at most the
worst case, which is min(S, E / K) times them (dropless, S devices on the expert
axis). What does not fit is clipped and counted as RECEIVER; its weight is lost,
also where weights were renormalised over the seated. Clipping depends on the
mesh, unlike all else. Queues (one of each group at each expert) are cut from
their ends, so that seating decides inside of a queue; among queues `clip` does:

  prefix    who arrives first fits, by device, then expert: it is always the
            last devices that lose
  priority  the first seats of all queues fit before any second seat, so that
            devices lose alike; in the last round the queues are drawn
  random    whole queues fit, in an order drawn anew at each step

Draws follow the key and the group's global number. Without a key (evaluation,
or 'priority' without dropout) each step draws the same.

With overflow='gather_reduce' nothing is clipped: at a step where the buffer of
any device is too small all devices run `gather_reduce` instead. Both are
compiled; the memory of the worst case is needed once, not for each layer.

XLA has no ragged exchange on CPU, where all rows are gathered in its place.
Elsewhere forward compiles to one all-gather (of counts) and two ragged
all-to-alls, backward to two more; `overflow` adds the sum of a scalar, and the
other path.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from moe_jax import registry, types
from moe_jax.dispatch import base
from moe_jax.errors import UserError
from moe_jax.kernels import grouped, permute, sorted_rows
from moe_jax.parallel import collectives

CLIPS = ('prefix', 'priority', 'random')
OVERFLOWS = ('drop', 'gather_reduce')


@registry.register
@dataclasses.dataclass(frozen=True)
class RaggedAllToAll(base.Dispatch):
  """Dropless but for the receiver's buffer.

  Attributes:
    matmul: call string of `kernels.grouped`.
    buffer_factor: rows of the buffer, in units of a balanced load.
    clip: who fits; one of CLIPS.
    overflow: one of OVERFLOWS.
  """

  matmul: str = 'auto'
  buffer_factor: float = 2.0
  clip: str = 'prefix'
  overflow: str = 'drop'

  def __post_init__(self):
    grouped.build(self.matmul)
    if self.buffer_factor < 1:
      raise UserError(
        f'ragged_all_to_all: buffer_factor={self.buffer_factor} must be at '
        'least 1, which holds a balanced load'
      )
    for name, valid in (('clip', CLIPS), ('overflow', OVERFLOWS)):
      if getattr(self, name) not in valid:
        raise UserError(
          f'ragged_all_to_all: {name}={getattr(self, name)!r}; valid: '
          f'{", ".join(valid)}'
        )

  @property
  def random(self):
    return self.clip == 'random' and self.overflow == 'drop'

  def __call__(self, experts, params, x_GTD, seated, axes, key):
    G, E = x_GTD.shape[0], seated.routing.num_experts
    n = axes.size(axes.expert)
    count_HE = collectives.all_gather(
      base.kept_counts(seated),
      axes.expert,
      dim=0,
      name=collectives.DISPATCHED,
    )
    balanced = base.most_rows(seated, G, E)
    worst = base.most_rows(seated, n * G, E // n)
    R = min(math.ceil(self.buffer_factor * balanced), worst)
    exact = n == 1 or R == worst

    quota_HE = count_HE
    if not exact:
      group_H = base.exchanged_groups(axes, G)
      quota_HE = quotas(self.clip, count_HE, R, n, group_H, key)

    def ragged():
      return _ragged(
        experts, params, x_GTD, seated, axes, key, self.matmul, quota_HE, R
      )

    if exact or self.overflow == 'drop':
      return ragged()

    # Without the checkpoint each layer would keep the residuals of both paths
    # (four layers of 16 experts on 8 devices: 216 MB instead of 149).
    @jax.checkpoint
    def fallback(params, x_GTD, seated):
      return base.gather_reduce(
        experts, params, x_GTD, seated, axes, key, self.matmul
      )

    over = (quota_HE < count_HE).any().astype(jnp.int32)
    over = collectives.psum(over, axes.batch, name='overflow') > 0
    return jax.lax.cond(
      over,
      lambda: (fallback(params, x_GTD, seated), seated.cause_N),
      ragged,
    )


def _ragged(
  experts, params, x_GTD, seated, axes, key, matmul, quota_HE, received
):
  """The exchange, where each queue sends its quota."""
  r, (G, T, _) = seated.routing, x_GTD.shape
  n = axes.size(axes.expert)
  me = collectives.index(axes.expert)
  e = r.num_experts // n
  sent = base.most_rows(seated, G, r.num_experts)
  quota_GE = jax.lax.dynamic_slice_in_dim(quota_HE, me * G, G)
  quota_He = jax.lax.dynamic_slice_in_dim(quota_HE, me * e, e, axis=1)
  size_SS = quota_HE.reshape(n, G, n, e).sum((1, 3))

  row_GN = sorted_rows.places(r.expert_N, seated.slot_N, quota_GE, sent)
  clipped_GN = seated.kept_N & (row_GN == sent)
  cause_GN = jnp.where(clipped_GN, types.RECEIVER, seated.cause_N)
  rows = sorted_rows.rows(
    r.token_N, r.weight_N, row_GN, sent, T, r.choices, r.weight_on
  )
  rows_RD = collectives.ragged_all_to_all(
    rows.collect(x_GTD),
    size_SS,
    rows=received,
    axes=axes.expert,
    name=collectives.DISPATCHED,
  )
  # They come by source, then expert; and return so.
  size_Se = quota_He.reshape(n, G, e).sum(1)
  by_expert_R = sorted_rows.regroup(size_Se, received)
  by_source_R = sorted_rows.regroup(size_Se.T, received)
  rows_RD = permute.reorder(rows_RD, by_expert_R, by_source_R)
  y_RD = base.run_sorted(
    experts, params, rows_RD, quota_He, seated, axes, key, matmul
  )
  y_RD = permute.reorder(y_RD, by_source_R, by_expert_R)
  y_RD = collectives.ragged_all_to_all(
    y_RD, size_SS.T, rows=sent, axes=axes.expert, name=collectives.RETURNED
  )
  return rows.combine(y_RD, x_GTD.dtype), cause_GN


def quotas(clip: str, count_HE, R: int, n: int, group_H, key) -> jax.Array:
  """int32 [H, E], how many seats of each queue fit into the buffers.

  Args:
    clip: one of CLIPS.
    count_HE: int32, seats of each group, by source device, at each expert.
    R: rows of a buffer.
    n: devices of the expert axis; E / n experts each.
    group_H: int32, global numbers of the groups.
    key: the same on all devices; None draws the same order at every step.
  """
  H, E = count_HE.shape

  def queues(v_HE):
    """[H, E] -> [receiver, queue], by source, then expert, then group."""
    v = v_HE.reshape(n, H // n, n, E // n).transpose(2, 0, 3, 1)
    return v.reshape(n, -1)

  count_SQ = queues(count_HE)
  order_SQ = jnp.broadcast_to(jnp.arange(count_SQ.shape[1]), count_SQ.shape)
  if clip != 'prefix':
    key = jax.random.key(0) if key is None else key
    key = jax.random.fold_in(key, E)  # dropout folds experts in
    draw = lambda g: jax.random.bits(jax.random.fold_in(key, g), (E,))
    order_SQ = jnp.argsort(queues(jax.vmap(draw)(group_H)), axis=1)
  quota_SQ = jnp.zeros_like(count_SQ)
  want_SQ = count_SQ
  if clip == 'priority':
    level_S1 = _level(count_SQ, R)
    quota_SQ = jnp.minimum(count_SQ, level_S1)
    want_SQ = (count_SQ > level_S1).astype(jnp.int32)
  left_S1 = R - quota_SQ.sum(1, keepdims=True)
  want_SQ = jnp.take_along_axis(want_SQ, order_SQ, 1)
  before_SQ = jnp.cumsum(want_SQ, 1) - want_SQ
  fit_SQ = jnp.clip(left_S1 - before_SQ, 0, want_SQ)
  quota_SQ += jnp.take_along_axis(fit_SQ, jnp.argsort(order_SQ, 1), 1)
  quota = quota_SQ.reshape(n, n, E // n, H // n).transpose(1, 3, 0, 2)
  return quota.reshape(H, E)


def _level(count_SQ, R: int):
  """int32 [S, 1], the most seats that every queue can have, bit by bit."""
  level_S1 = jnp.zeros((count_SQ.shape[0], 1), jnp.int32)
  for bit in reversed(range(R.bit_length())):
    higher_S1 = level_S1 + (1 << bit)
    rows_S1 = jnp.minimum(count_SQ, higher_S1).sum(1, keepdims=True)
    level_S1 = jnp.where(rows_S1 <= R, higher_S1, level_S1)
  return level_S1
