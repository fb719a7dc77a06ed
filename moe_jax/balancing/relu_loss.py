"""ReMoE's loss: an L1 norm of the gates whose factor seeks the wanted sparsity.

Ziteng Wang et al., "ReMoE: Fully Differentiable Mixture-of-Experts with ReLU
Routing", ICLR 2025, arXiv:2412.14711, section 3 (recalled, not checked against
the paper): sum_e f_e mean_t R_te, R being the gates and f_e = E / (k T) times
the tokens with R_te > 0, so that busy experts are pushed harder. The factor is
multiplied by `growth` after a step that used more than k experts a token, and
divided by it after one that used fewer; it starts at 1e-8, growth is 1.2. Ours
stays from 1e-30 to 1e30.

Differs from the paper: each layer has a factor of its own and its own k, where
the paper counts over all layers. Goes with `relu`; the factor must not be
forgotten in checkpoints, or thousands of steps are needed to find it again.
"""

import dataclasses

import jax.numpy as jnp

from moe_jax import registry
from moe_jax.balancing import base
from moe_jax.errors import UserError

RANGE = (1e-30, 1e30)  # of the factor


@registry.register
@dataclasses.dataclass(frozen=True)
class ReluLoss(base.Balance):
  """The loss, in units of the factor.

  Attributes:
    k: mean experts of a token that the factor seeks.
    start: of the factor.
    growth: of the factor in a step, above 1.
    weight: fixed, beside the factor.
  """

  k: float = 1.0
  start: float = 1e-8
  growth: float = 1.2
  weight: float = 1.0
  scope: str = dataclasses.field(default='global', init=False)

  def check(self):
    for name, bar in (('k', 0), ('start', 0), ('growth', 1)):
      if not (value := getattr(self, name)) > bar:
        raise UserError(f'relu_loss: {name}={value} must be above {bar}')

  def stats(self, sums):
    if 'gates' not in sums.routing.terms:
      raise UserError('relu_loss needs a router with gates: relu, noisy_top_k')
    gates = sums.routing.terms['gates']
    return {
      'gates': sums.tokens(gates),
      'used': sums.tokens((gates > 0).astype(jnp.int32)),
      'tokens': sums.count(),
    }

  def loss(self, stats, state, router):
    used, tokens = stats['used'], jnp.maximum(stats['tokens'], 1)
    # Divided first: as integers, used * E overflows at large batches.
    busy = used / (self.k * tokens[..., None]) * used.shape[-1]
    return state * (busy * stats['gates']).sum(-1) / tokens

  def init(self, E):
    del E
    return jnp.float32(self.start)

  def update(self, state, stats):
    more = stats['used'].sum(-1) - self.k * stats['tokens']
    # A factor of 0 or infinity could not be multiplied back.
    return jnp.clip(state * self.growth ** jnp.sign(more), *RANGE)
