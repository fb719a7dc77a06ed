"""DSelect-k: k selectors spell an expert's number in smooth bits.

Hussein Hazimeh et al., "DSelect-k: Differentiable Selection in the Mixture of
Experts with Applications to Multi-Task Learning", NeurIPS 2021,
arXiv:2106.03760, section 3, the gate that sees its input: each selector has
ceil(log2 E) bits, each a smooth step of a projection, and gives expert e the
product over bits of the step or of 1 less the step, as e's binary number says.
The selectors are mixed by a softmax. Once all steps are saturated at most k
experts are used; until then all are, at a dense layer's cost. Pair it with
`selector_loss`, which saturates them, with its `reach` where E is no power of
two: what lies on numbers that no expert has is lost, and weights are not
renormalised.

Recalled, not checked against the code: bits start uniform within width / 100.
In a decoder binding capacity leaks: see `top_k`.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.errors import UserError
from moe_jax.kernels import gates
from moe_jax.routers import base


@registry.register
@dataclasses.dataclass(frozen=True)
class DselectK(base.Router):
  """k: selectors. width: of the smooth step, in units of the projection."""

  k: int = 2
  width: float = 1.0

  def __post_init__(self):
    base.check_k('dselect_k', self.k)
    if not self.width > 0:
      raise UserError(f'dselect_k: width={self.width} must be above 0')

  def check(self, E):
    if E < 2:
      raise UserError(f'dselect_k: num_experts={E} must be at least 2')

  def init(self, key, E, D):
    key_b, key_m = jax.random.split(key)
    edge, bits = self.width / 100, (E - 1).bit_length()
    draw = lambda key, n: jax.random.uniform(
      key, (D, n), minval=-edge, maxval=edge
    )
    return {
      'bits': draw(key_b, self.k * bits),
      'mix': draw(key_m, self.k),
    }

  def __call__(self, params, x_TD, ctx):
    T, E = len(x_TD), ctx.num_experts
    z = base.linear_logits({'kernel': params['bits']}, x_TD)
    z_TK1B = z.reshape(T, self.k, 1, -1)
    numbers_E1 = jnp.arange(E)[:, None]
    is_one_EB = (numbers_E1 >> jnp.arange(z_TK1B.shape[-1])) & 1
    sign_EB = 2.0 * is_one_EB - 1
    bit_TKEB = gates.smooth_step(sign_EB * z_TK1B, self.width)
    select_TKE = bit_TKEB.prod(-1)
    mix_TK = jax.nn.softmax(base.linear_logits({'kernel': params['mix']}, x_TD))
    entropy_TKE = -select_TKE * jnp.log(select_TKE + 1e-6)
    gates_TE = (mix_TK[..., None] * select_TKE).sum(1)
    probs_TE = gates.shares(gates_TE)
    used = lambda scores_TE: jnp.where(gates_TE > 0, scores_TE, -jnp.inf)
    chosen = base.choose(gates_TE, ctx, E, then=used)
    return chosen.routing(
      chosen.of(gates_TE),
      chosen.score_TK > -jnp.inf,
      logits_TE=jnp.log(jnp.maximum(probs_TE, 1e-6)),
      probs_TE=probs_TE,
      terms={
        'selector_entropy': entropy_TKE.sum((1, 2)),
        'selector_reach': (1 / (1e-6 + select_TKE.sum(-1))).sum(-1),
      },
    )

  def experts_per_token(self, E):
    """All: so it starts. Saturated, it is at most k."""
    return float(E)
