"""Every expert on every edge, then the one that was chosen: the oracle.

No capacity buffers, no exchange of tokens: expert weights are gathered to all
devices and each edge's token goes through all E experts. What the seating
dropped is left out. E times the FLOPs of the others, which all must equal it,
values and gradients; for tests.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.dispatch import base
from moe_jax.experts import base as experts_base
from moe_jax.kernels import permute
from moe_jax.parallel import collectives


@registry.register
@dataclasses.dataclass(frozen=True)
class Dense(base.Dispatch):
  """No options."""

  padded = True

  def __call__(self, experts, params, x_GTD, seated, axes, key):
    r, E = seated.routing, seated.routing.num_experts
    gather = lambda w: collectives.gather_weights(
      w, axes.expert, dim=0, name='dense_weights', dtype=w.dtype
    )
    stacked = experts_base.is_stacked
    params = {
      k: gather(w) if stacked(experts.axes[k]) else w for k, w in params.items()
    }
    all_E = jnp.arange(E, dtype=jnp.int32)

    def one_group(x_TD, r, kept_N, slot_N, group):
      x_ND = permute.look_up(x_TD, r.token_N)
      weight_N = jnp.where(kept_N, r.weight_N, 0.0)
      if r.weight_on == 'input':
        x_ND = permute.weighted(x_ND, weight_N)
        weight_N = kept_N.astype(jnp.float32)
      seat_N = group * seated.rows + slot_N
      drop = base.dropper(key, all_E, seat_N, axes)
      ops = base.buffer_ops(x_ND.shape[0], axes.model, drop, E)
      y_END = experts(params, permute.laid(x_ND, (E, *x_ND.shape)), ops)
      chosen_N = jnp.minimum(r.expert_N, E - 1)
      y_ND = y_END[chosen_N, jnp.arange(chosen_N.shape[0])]
      y_ND = y_ND.astype(jnp.float32) * weight_N[:, None]
      y_TD = jnp.zeros(x_TD.shape, jnp.float32).at[r.token_N].add(y_ND)
      return y_TD.astype(x_TD.dtype)

    group_G = base.local_groups(axes, x_GTD.shape[0])
    y_GTD = jax.vmap(one_group)(x_GTD, r, seated.kept_N, seated.slot_N, group_G)
    return y_GTD, seated.cause_N
