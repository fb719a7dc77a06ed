"""Experts that give the token back: a skip.

Peng Jin et al., "MoE++: Accelerating Mixture-of-Experts Methods with
Zero-Computation Experts", 2024, arXiv:2410.07348, section 3.1, equation 3. With
a pre-norm residual stream what is copied is the normalised token.
"""

import dataclasses

import jax.numpy as jnp

from moe_jax import registry
from moe_jax.local_experts import base


@registry.register
@dataclasses.dataclass(frozen=True)
class Copy(base.LocalExperts):
  """count: how many."""

  count: int = 1

  def __post_init__(self):
    base.check_count('copy', self.count)

  def __call__(self, params, x_TD, weight_TJ):
    return weight_TJ.sum(-1, keepdims=True) * x_TD.astype(jnp.float32)
