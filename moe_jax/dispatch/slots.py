"""Slots that are mixtures of tokens, for Soft MoE alone.

Joan Puigcerver et al., "From Sparse to Soft Mixtures of Experts", 2023,
arXiv:2308.00951, section 2.1; recalled, not read.

Two plain products per group, [T, E S] weights each, and the two all-to-alls of
`scatter`, on E x S rows a group. The products round the weights where a
platform rounds float32 products (TPU). A capacity below S rows an expert would
drop slots; it is an error.
"""

import dataclasses

import jax.numpy as jnp

from moe_jax import registry, types
from moe_jax.dispatch import base
from moe_jax.errors import UserError
from moe_jax.parallel import collectives


@registry.register
@dataclasses.dataclass(frozen=True)
class Slots(base.Dispatch):
  """No options."""

  routing = types.SlotRouting

  def __call__(self, experts, params, x_GTD, seated, axes, key):
    G, _, D = x_GTD.shape
    r, E = seated.routing, seated.routing.num_experts
    S = r.expert_N.shape[-1] // E
    if seated.rows < S:
      raise UserError(
        f'slots: {S} slots of an expert and a capacity of {seated.rows} rows; '
        'capacity_factor=0 seats all'
      )
    f32 = jnp.float32
    rows_GND = jnp.einsum(
      'gtn,gtd->gnd', r.dispatch_TN, x_GTD, preferred_element_type=f32
    ).astype(x_GTD.dtype)
    rows_END = rows_GND.reshape(G, E, S, D).swapaxes(0, 1).reshape(E, G * S, D)
    rows_END = collectives.all_to_all(
      rows_END, axes.expert, split=0, concat=1, name=collectives.DISPATCHED
    )
    ops = base.exchanged_ops(key, len(rows_END), axes, G, S)
    rows_END = experts(params, rows_END, ops)
    rows_END = collectives.all_to_all(
      rows_END, axes.expert, split=1, concat=0, name=collectives.RETURNED
    )
    y_GND = rows_END.reshape(E, G, S, D).swapaxes(0, 1).reshape(G, E * S, D)
    y_GTD = jnp.einsum(
      'gtn,gnd->gtd', r.combine_TN, y_GND, preferred_element_type=f32
    )
    return y_GTD.astype(x_GTD.dtype), seated.cause_N
