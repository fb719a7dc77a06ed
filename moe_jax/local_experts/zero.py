"""Experts that give zeros: a token's choice of doing less.

Zihao Zeng et al., "AdaMoE: Token-Adaptive Routing with Null Experts for
Mixture-of-Experts Language Models", 2024, arXiv:2406.13233, section 3.1, its
null experts, and MoE++'s zero experts (Jin et al. 2024, arXiv:2410.07348,
section 3.1, equation 2). A combine weight spent here is lost, or not: that is
the router's choice, since AdaMoE renormalises over the others and MoE++ does
not.
"""

import dataclasses

from moe_jax import registry
from moe_jax.local_experts import base


@registry.register
@dataclasses.dataclass(frozen=True)
class Zero(base.LocalExperts):
  """count: how many."""

  count: int = 1

  def __post_init__(self):
    base.check_count('zero', self.count)

  def __call__(self, params, x_TD, weight_TJ):
    return None
