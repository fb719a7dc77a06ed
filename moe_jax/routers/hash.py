"""Hash routing: a token's id decides, nothing is learned.

Stephen Roller et al., "Hash Layers For Large Sparse Models", NeurIPS 2021,
arXiv:2106.04426, section 3 (recalled): a random, fixed map from the vocabulary
to the experts, weight 1; with k > 1 each token has k different experts of
weight 1 / k (their MultiHash splits the experts' weights instead).

The map is a hash of the id and `seed`, so that it needs no table; ids are as
balanced as hashes are, tokens as their ids' frequencies. No balancing rule can
help: it has no affinities.
"""

import dataclasses

import jax.numpy as jnp

from moe_jax import registry
from moe_jax.routers import base


@registry.register
@dataclasses.dataclass(frozen=True)
class Hash(base.Choosing):
  """k: experts of a token. seed: of the map, an unsigned 32-bit number."""

  k: int = 1
  seed: int = 0

  def init(self, key, E, D):
    return {}

  def __call__(self, params, x_TD, ctx):
    E = ctx.num_experts
    ids_T = base.known(ctx, 'ids_T', 'hash').astype(jnp.uint32)
    hash_T1 = mix(ids_T ^ mix(jnp.uint32(self.seed)))[:, None]
    # The others follow at distances 1 to E - 1, from where a second hash says.
    others = jnp.arange(self.k - 1, dtype=jnp.uint32)
    far_TK = 1 + (mix(hash_T1 ^ jnp.uint32(0x9E3779B9)) + others) % max(
      E - 1, 1
    )
    first_T1 = hash_T1 % E
    expert_TK = jnp.concatenate([first_T1, (first_T1 + far_TK) % E], axis=1)
    weight_TK = jnp.full(expert_TK.shape, 1 / self.k, jnp.float32)
    return base.fixed(expert_TK, ctx).routing(weight_TK)


def mix(x):
  """A bijection of uint32 that spreads every bit: MurmurHash3's finaliser."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
