"""Soft MoE: experts get slots, each a mixture of all tokens of the group.

Joan Puigcerver et al., "From Sparse to Soft Mixtures of Experts", 2023,
arXiv:2308.00951, section 2.1 (equations 1 to 3) and 2.3 (tokens and slot
parameters normalised to length 1, with a learned scale). Recalled, not read
here: no report of ours quotes it.

Nothing is dropped and nothing is discrete; balanced by construction: pair it
with balance=(). Every token sees the whole group: not causal. Goes with the
dispatch `slots` alone. Padding has no weight in a slot; a token of padding gets
what its neighbours would.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_jax import registry, types
from moe_jax.routers import base


@registry.register
@dataclasses.dataclass(frozen=True)
class Soft(base.Router):
  """slots: S of each expert. The paper has about T / E, the cost of top-1."""

  slots: int = 1
  causal, compares = False, 'always'

  def __post_init__(self):
    base.check_k('soft', self.slots)

  def init(self, key, E, D):
    phi_DN = jax.random.normal(key, (D, E * self.slots)) * D**-0.5
    return {'kernel': phi_DN, 'scale': jnp.ones(())}

  def __call__(self, params, x_TD, ctx):
    N = params['kernel'].shape[1]
    E = N // self.slots
    unit = lambda v, axis: (
      v * jax.lax.rsqrt(jnp.maximum((v**2).sum(axis, keepdims=True), 1e-12))
    )
    kernel_DN = params['scale'] * unit(params['kernel'], 0)
    x_TD = unit(x_TD.astype(jnp.float32), 1)
    logits_TN = base.linear_logits({'kernel': kernel_DN}, x_TD)
    real_T1 = ctx.mask_T[:, None]
    # Finite: a group of padding alone has no largest logit.
    dispatch_TN = jax.nn.softmax(jnp.where(real_T1, logits_TN, -1e30), axis=0)
    combine_TN = jax.nn.softmax(logits_TN)
    # A slot's place in the list of edges: its expert's, in order.
    by_expert_TES = combine_TN.reshape(-1, E, self.slots)
    return types.SlotRouting(
      token_N=jnp.zeros(N, jnp.int32),
      expert_N=jnp.arange(N, dtype=jnp.int32) // self.slots,
      weight_N=jnp.ones(N, jnp.float32),
      probs_TE=by_expert_TES.sum(-1),
      num_experts=E,
      dispatch_TN=jnp.where(real_T1, dispatch_TN, 0.0),
      combine_TN=jnp.where(real_T1, combine_TN, 0.0),
    )

  def most_edges(self, T):
    return self.slots

  def experts_per_token(self, E):
    # As in the paper, E S = T; the cost does not follow the tokens.
    return 1.0
