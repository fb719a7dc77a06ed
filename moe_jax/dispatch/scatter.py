"""Padded expert buffers [E, C, D] and two plain all-to-alls: the default.

GShard's exchange (Lepikhin et al. 2020, arXiv:2006.16668, section 3.2) with
gathers by index in place of its one-hot products. Runs on CPU, GPU and TPU
with static shapes.

Per device: E x G x C rows of width D are sent, computed and returned. Forward
compiles to two all-to-alls where the expert axis exceeds 1 and to no other
collective; backward to two more; each of them once for every chunk, and in two
stages with `host`. Dropless (C = T) pads E / K times: for small models, tests
and generation.

Chunks overlap communication and compute, and two stages make few large messages
between hosts of many small ones, as in Tutel (Hwang et al. 2022,
arXiv:2206.03382; recalled, not read).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.dispatch import base
from moe_jax.errors import UserError
from moe_jax.kernels import permute
from moe_jax.parallel import collectives, compat


@registry.register
@dataclasses.dataclass(frozen=True)
class Scatter(base.Dispatch):
  """An exchange of padded buffers.

  Attributes:
    pipeline_degree: chunks that the rows of an expert are exchanged and
      computed in, so that one chunk's exchange can run beside another's
      products. Rows are padded to a multiple.
    host: devices of a host on the expert axis; above 1 the exchange is in two
      stages, inside hosts and across.
  """

  pipeline_degree: int = 1
  host: int = 1

  def __post_init__(self):
    for name in ('pipeline_degree', 'host'):
      value = getattr(self, name)
      if not isinstance(value, int) or value < 1:
        raise UserError(
          f'scatter: {name}={value!r} must be a whole number from 1'
        )

  def __call__(self, experts, params, x_GTD, seated, axes, key):
    G, T, D = x_GTD.shape
    r, E = seated.routing, seated.routing.num_experts
    N = r.token_N.shape[1]
    chunk = -(-seated.rows // self.pipeline_degree)
    C = chunk * self.pipeline_degree
    group_G = jnp.arange(G, dtype=jnp.int32)[:, None]

    # Row (e, g, c) of the flattened buffers holds one edge, or is empty.
    edge_GEC = jax.vmap(base.buffer_edges)(seated)
    padding = ((0, 0), (0, 0), (0, C - seated.rows))
    edge_GEC = jnp.pad(edge_GEC, padding, constant_values=N)
    edge_GR = edge_GEC.reshape(G, E * C)
    empty_GR = edge_GR == N
    token_GR = jnp.take_along_axis(r.token_N, jnp.minimum(edge_GR, N - 1), 1)
    token_GR = jnp.where(empty_GR, G * T, group_G * T + token_GR)
    to_EGC = lambda v: v.reshape(G, E, C).swapaxes(0, 1).reshape(-1)
    row_GN = (r.expert_N * G + group_G) * C + seated.slot_N
    row_GN = jnp.where(seated.kept_N, row_GN, E * G * C)

    x_ND = x_GTD.reshape(G * T, D)
    token_R = to_EGC(token_GR)
    if r.choices is None:
      rows_RD = permute.look_up(x_ND, token_R, fill=True)
    else:
      # [G, K, T] -> [K, G * T], beside tokens in the order g * T + t.
      by_choice = lambda v: (
        v.reshape(G, r.choices, T).swapaxes(0, 1).reshape(r.choices, G * T)
      )
      row_KT = by_choice(row_GN)
      rows_RD = permute.to_rows(x_ND, token_R, row_KT)
    weight_GR = jnp.take_along_axis(r.weight_N, jnp.minimum(edge_GR, N - 1), 1)
    weight_GR = jnp.where(empty_GR, 0.0, weight_GR)
    weight_GN = r.weight_N
    if r.weight_on == 'input':
      rows_RD = permute.weighted(rows_RD, to_EGC(weight_GR))
      weight_GN = jnp.ones_like(weight_GN)

    buffers = rows_RD.reshape(E, G, self.pipeline_degree, chunk, D)
    chunks = [
      self._chunk(experts, params, buffers[:, :, i], seated, axes, key, i)
      for i in range(self.pipeline_degree)
    ]
    y_RD = jnp.stack(chunks, axis=2).reshape(E * G * C, D)

    if r.choices is None:
      y_TD = permute.from_rows_by_edges(
        y_RD,
        weight_GN.reshape(-1),
        (group_G * T + r.token_N).reshape(-1),
        row_GN.reshape(-1),
        G * T,
      )
    else:
      edge_R = _edge_by_choice(
        to_EGC(edge_GR),
        to_EGC(jnp.broadcast_to(group_G, edge_GR.shape)),
        G,
        T,
        N,
      )
      weight_KT = by_choice(weight_GN)
      weight_KT = compat.device_varying(weight_KT, compat.varying(y_RD))
      y_TD = permute.from_rows(y_RD, weight_KT, token_R, edge_R, row_KT)
    return y_TD.reshape(G, T, D), seated.cause_N

  def _chunk(self, experts, params, rows, seated, axes, key, i):
    """Rows [E, G, chunk, D] to their experts and back."""
    E, G, chunk, D = rows.shape
    exchange = functools.partial(
      collectives.all_to_all, axes=axes.expert, host=self.host
    )
    rows = exchange(
      rows.reshape(E, G * chunk, D),
      split=0,
      concat=1,
      name=collectives.DISPATCHED,
    )
    seats = range(i * chunk, (i + 1) * chunk)
    ops = base.exchanged_ops(key, params, axes, G, seated.rows, seats)
    rows = experts(params, rows, ops)
    rows = exchange(rows, split=1, concat=0, name=collectives.RETURNED)
    return rows.reshape(E, G, chunk, D)


def _edge_by_choice(edge_R, group_R, G, T, N):
  """Index of each row's edge in weights laid out [K, G * T]."""
  index_R = (edge_R // T) * (G * T) + group_R * T + edge_R % T
  return jnp.where(edge_R == N, G * N, index_R)
