"""Cosine routing: logits are the cosine to each expert's vector, sharpened.

Zewen Chi et al., "On the Representation Collapse of Sparse Mixture of Experts",
NeurIPS 2022, arXiv:2204.09179 (X-MoE), section 3: x W, of `d_low` numbers, and
the experts' vectors are scaled to length 1, and their product divided by a
learned temperature, so that no expert wins by a long vector. The combine weight
is the softmax's probability, of k = 1 raw, of more over their sum.

Recalled, not checked against the paper: d_low = 16, temperature 0.3 at the
start, at least 0.01; learned is its inverse. In a decoder binding capacity
leaks for k above 1: see `top_k`.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.errors import UserError
from moe_jax.routers import base


@registry.register
@dataclasses.dataclass(frozen=True)
class Cosine(base.Choosing):
  """k experts a token.

  Attributes:
    k: experts of a token.
    d_low: width in which directions are compared.
    temperature: at the start; its inverse is learned.
    floor: least temperature.
  """

  k: int = 1
  d_low: int = 16
  temperature: float = 0.3
  floor: float = 0.01

  def __post_init__(self):
    super().__post_init__()
    if self.d_low < 1:
      raise UserError(f'cosine: d_low={self.d_low} must be at least 1')
    if not 0 < self.floor <= self.temperature:
      raise UserError(
        f'cosine: temperature={self.temperature} must be at least '
        f'floor={self.floor}, which must be above 0'
      )

  def init(self, key, E, D):
    key_p, key_e = jax.random.split(key)
    normal = jax.nn.initializers.lecun_normal()
    return {
      'kernel': normal(key_p, (D, self.d_low), jnp.float32),
      'experts': jax.random.normal(key_e, (E, self.d_low)),
      # Typed: a weak type would compile the training step twice.
      'sharpness': jnp.full(1, 1 / self.temperature, jnp.float32),
    }

  def __call__(self, params, x_TD, ctx):
    unit = lambda v: v * jax.lax.rsqrt((v * v).sum(-1, keepdims=True) + 1e-12)
    low_TL = unit(base.linear_logits(params, x_TD))
    cosine_TE = base.linear_logits(
      {'kernel': unit(params['experts']).T}, low_TL
    )
    logits_TE = cosine_TE * jnp.minimum(params['sharpness'], 1 / self.floor)
    found = base.affinities(logits_TE)
    chosen = base.choose(found['probs_TE'], ctx, self.k)
    weight_TK = chosen.of(found['probs_TE'])
    if self.k > 1:
      weight_TK = jax.nn.softmax(chosen.of(logits_TE))
    return chosen.routing(weight_TK, **found)
