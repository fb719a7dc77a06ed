"""ReLU routing: every expert with a positive logit, weighted by it.

Ziteng Wang et al., "ReMoE: Fully Differentiable Mixture-of-Experts with ReLU
Routing", ICLR 2025, arXiv:2412.14711, section 3: the weights are ReLU(x W),
continuous in x, so that an expert comes and goes with weight 0. How many are
used is up to `relu_loss`, whose factor adapts; without it about half of all
experts are, at the start and perhaps ever after. A token may use none.

Equations as recalled, not checked against the paper. A selection bias moves the
bar, not the weights. `max_choices` bounds the buffers; beyond it the smallest
are lost. In a decoder binding capacity leaks: see `top_k`.
"""

import dataclasses

import jax

from moe_jax import registry
from moe_jax.kernels import gates
from moe_jax.routers import base


@registry.register
@dataclasses.dataclass(frozen=True)
class Relu(base.Matrix):
  """From 0 to `max_choices` experts a token.

  Attributes:
    max_choices: 0 is all experts.
  """

  max_choices: int = 0

  def __post_init__(self):
    super().__post_init__()
    if self.max_choices:
      base.check_k('relu', self.max_choices)

  def check(self, E):
    if self.max_choices:
      base.check_k('relu', self.max_choices, E)

  def __call__(self, params, x_TD, ctx):
    logits_TE = base.linear_logits(params, x_TD)
    k = self.max_choices or ctx.num_experts
    chosen = base.choose(logits_TE, ctx, k)
    gates_TE = jax.nn.relu(logits_TE)
    return chosen.routing(
      chosen.of(gates_TE),
      chosen.score_TK > 0,
      logits_TE=logits_TE,
      probs_TE=gates.shares(gates_TE),
      terms={'gates': gates_TE},
    )

  def experts_per_token(self, E):
    """Those of the start, where half of the logits are positive."""
    return min(E / 2, float(self.max_choices or E))
