"""Every edge looks its expert's weights up: for very many, very small experts.

Xu Owen He, "Mixture of A Million Experts", 2024, arXiv:2407.04153, section 2.2
(PEER): the weights of an edge's expert are gathered, N x D numbers for experts
of one neuron, instead of sending tokens to experts. Nothing is sorted and
nothing padded. Backward adds up by scatter, in float32.

On an expert axis of S devices each gathers the tokens and edges of the others,
as `gather_reduce` does, looks up what its own experts compute and returns
partial sums: every device passes over all S x N edges. Experts of a few dozen
hidden units are better served by sorting: N x D x F numbers here.
"""

import dataclasses

import jax.numpy as jnp

from moe_jax import registry
from moe_jax.dispatch import base
from moe_jax.experts import base as experts_base
from moe_jax.kernels import permute
from moe_jax.parallel import collectives


@registry.register
@dataclasses.dataclass(frozen=True)
class Lookup(base.Dispatch):
  """No options."""

  def __call__(self, experts, params, x_GTD, seated, axes, key):
    r, (G, T, D) = seated.routing, x_GTD.shape
    e = r.num_experts // axes.size(axes.expert)
    first = collectives.index(axes.expert) * e

    def gather(v):
      name = collectives.DISPATCHED
      return collectives.all_gather(v, axes.expert, dim=0, name=name)

    group_G1 = jnp.arange(G, dtype=jnp.int32)[:, None]
    token_GN = group_G1 * T + r.token_N
    edges = gather(
      jnp.stack(
        [
          token_GN,
          jnp.where(seated.kept_N, r.expert_N, r.num_experts),
          base.local_groups(axes, G)[:, None] * seated.rows + seated.slot_N,
        ],
        axis=1,
      )
    )
    x_XD, weight_N = gather(x_GTD), gather(r.weight_N).reshape(-1)
    # Tokens of the device that an edge came from.
    from_N = jnp.arange(edges.shape[0], dtype=jnp.int32) // G * (G * T)
    token_N = (edges[:, 0] + from_N[:, None]).reshape(-1)
    expert_N = edges[:, 1].reshape(-1) - first
    mine_N = (expert_N >= 0) & (expert_N < e)
    expert_N = jnp.where(mine_N, expert_N, 0)
    weight_N = jnp.where(mine_N, weight_N, 0.0)

    x_ND = permute.look_up(x_XD.reshape(-1, D), token_N)
    if r.weight_on == 'input':
      x_ND = permute.weighted(x_ND, weight_N)
      weight_N = mine_N.astype(jnp.float32)
    drop = None
    if key is not None:
      row_N = edges[:, 2].reshape(-1)
      drop = base.sorted_dropper(key, expert_N + first, row_N, axes)
    y_ND = experts(params, x_ND, _ops(expert_N, axes.model, drop))
    y_ND = y_ND.astype(jnp.float32) * weight_N[:, None]
    y_XD = jnp.zeros((x_XD.shape[0] * T, D), jnp.float32).at[token_N].add(y_ND)
    y_GTD = collectives.reduce_scatter(
      y_XD.reshape(-1, T, D), axes.expert, dim=0, name=collectives.RETURNED
    )
    return y_GTD.astype(x_GTD.dtype), seated.cause_N


def _ops(expert_N, model, drop):
  """Operations on one row an edge."""

  def spread(b):
    if b.ndim == 1:
      return permute.laid(b, (expert_N.size, b.size))
    return permute.look_up(b, expert_N)

  def dot(x_NA, w):
    if w.ndim == 2:
      return jnp.dot(x_NA, w)
    y_NB = jnp.einsum(
      'na,nab->nb',
      x_NA,
      permute.look_up(w, expert_N),
      preferred_element_type=jnp.float32,
    )
    return y_NB.astype(x_NA.dtype)

  return experts_base.Ops(
    dot=dot,
    spread=spread,
    once=lambda b: spread(base.first_alone(b, model)),
    drop=drop or (lambda hidden, rate, mask: hidden),
  )
