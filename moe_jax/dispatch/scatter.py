"""Padded expert buffers [E, C, D] and two plain all-to-alls: the default.

Dmitry Lepikhin et al., "GShard: Scaling Giant Models with Conditional
Computation and Automatic Sharding", 2020, arXiv:2006.16668, section 3.2, its
exchange with gathers by index in place of its one-hot products. Runs on CPU,
GPU and TPU with static shapes.

Per device: E x G x C rows of width D are sent, computed and returned. Forward
compiles to two all-to-alls where the expert axis exceeds 1 and to no other
collective; backward to two more; each of them once for every chunk, and in two
stages with `host`. Dropless (C = T) pads E / K times: for small models, tests
and generation.

Chunks overlap communication and compute, and two stages make few large messages
between hosts of many small ones, as in Tutel (Changho Hwang et al., "Tutel:
Adaptive Mixture-of-Experts at Scale", 2022, arXiv:2206.03382; recalled, not
read).
"""

import dataclasses
import functools

import jax.numpy as jnp

from moe_jax import registry
from moe_jax.dispatch import base
from moe_jax.errors import UserError
from moe_jax.parallel import collectives


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

  padded = True

  def __post_init__(self):
    for name in ('pipeline_degree', 'host'):
      value = getattr(self, name)
      if not isinstance(value, int) or value < 1:
        raise UserError(
          f'scatter: {name}={value!r} must be a whole number from 1'
        )

  def __call__(self, experts, params, x_GTD, seated, axes, key):
    G, T, D = x_GTD.shape
    E = seated.routing.num_experts
    chunk = -(-seated.rows // self.pipeline_degree)
    plan = base.buffers(seated, T, chunk * self.pipeline_degree)
    rows = plan.collect(x_GTD).reshape(E, G, self.pipeline_degree, chunk, D)
    chunks = [
      self._chunk(experts, params, rows[:, :, i], seated, axes, key, i)
      for i in range(self.pipeline_degree)
    ]
    y_RD = jnp.stack(chunks, axis=2).reshape(-1, D)
    return plan.combine(y_RD, x_GTD.dtype), seated.cause_N

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
    ops = base.exchanged_ops(key, len(rows), axes, G, seated.rows, seats)
    rows = experts(params, rows, ops)
    rows = exchange(rows, split=1, concat=0, name=collectives.RETURNED)
    return rows.reshape(E, G, chunk, D)
