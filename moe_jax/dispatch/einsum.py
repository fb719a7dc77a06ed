"""One-hot dispatch and combine masks [G, T, E, C], for the record.

Dmitry Lepikhin et al., "GShard: Scaling Giant Models with Conditional
Computation and Automatic Sharding", 2020, arXiv:2006.16668, algorithm 2; the
same in Mesh-TensorFlow and Switch Transformer (Fedus et al. 2021,
arXiv:2101.03961, appendix F). Its two products cost T / F times the FLOPs of
ReLU experts on top of theirs: with groups of 4,096 tokens and F = 2,048 twice
as much. Use `scatter`. Combine weights enter a product, which rounds them where
a platform rounds float32 products (TPU).

Forward compiles to two all-to-alls where the expert axis exceeds 1.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.dispatch import base
from moe_jax.parallel import collectives


@registry.register
@dataclasses.dataclass(frozen=True)
class Einsum(base.Dispatch):
  """No options."""

  padded = True

  def __call__(self, experts, params, x_GTD, seated, axes, key):
    G, T, D = x_GTD.shape
    r, C, E = seated.routing, seated.rows, seated.routing.num_experts

    def masks(r, kept_N, slot_N):
      # Built from indices: cast from the combine weights, a gate that
      # underflows in bf16 would silently drop its token. An edge that is not
      # kept lands out of range, at expert E.
      at = (r.token_N, jnp.where(kept_N, r.expert_N, E), slot_N)
      empty = jnp.zeros((T, E, C), jnp.float32)
      return (
        empty.at[at].add(1.0, mode='drop'),
        empty.at[at].add(r.weight_N, mode='drop'),
      )

    send_GTEC, combine_GTEC = jax.vmap(masks)(r, seated.kept_N, seated.slot_N)
    if r.weight_on == 'input':
      send_GTEC, combine_GTEC = combine_GTEC, send_GTEC
    send_GTEC = send_GTEC.astype(x_GTD.dtype)
    rows = jnp.einsum('gtec,gtd->egcd', send_GTEC, x_GTD)
    rows = collectives.all_to_all(
      rows.reshape(E, G * C, D),
      axes.expert,
      split=0,
      concat=1,
      name=collectives.DISPATCHED,
    )
    ops = base.exchanged_ops(key, len(rows), axes, G, C)
    rows = experts(params, rows, ops)
    rows = collectives.all_to_all(
      rows, axes.expert, split=1, concat=0, name=collectives.RETURNED
    )
    y_GTD = jnp.einsum('gtec,egcd->gtd', combine_GTEC, rows.reshape(E, G, C, D))
    return y_GTD.astype(x_GTD.dtype), seated.cause_N
