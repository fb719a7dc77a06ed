"""FlexOlmo's routing: rows that owners trained apart, and biases not above 0.

Weijia Shi et al., "FlexOlmo: Open Language Models for Flexible Data Use", 2025,
arXiv:2507.07024, section 3, and the released code. Row e of the router is what
the owner of expert e trained beside the public expert, number 0, whose row and
weights were frozen: expert e is preferred to it where r_e x + b_e > r_0 x. The
bias, b_e <= 0, is trained by gradient and is part of the affinity; expert 0 has
none. A token's weights are the probabilities of a softmax over all experts.

As in the code the parameter is free and min(b, 0) is used: at 0 half of the
gradient passes, above 0 none. Differs from the code: the bias starts at 0,
where it is `torch.empty`; rows start as those of any router here, where theirs
are drawn from a truncated normal that has no values above 0; and the mixture
has the biases, which their merging leaves out.

Raw weights of a pair sum to 1, the k largest of a merge do not, so its FFNs
count for less than in training: small models lose 0.17 nats a byte by that, and
want `renormalize=True` (`configs/ablations/flex_olmo.py`). In a decoder binding
capacity leaks: see `top_k`.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.errors import UserError
from moe_jax.routers import base


@registry.register
@dataclasses.dataclass(frozen=True)
class FlexOlmo(base.Choosing, base.Matrix):
  """k experts a token; renormalize: divide the weights by their sum."""

  k: int = 2
  renormalize: bool = False
  anchors = 1

  def __post_init__(self):
    super().__post_init__()
    if self.k == 1 and self.renormalize:
      raise UserError(
        'flex_olmo: k=1 makes every renormalised weight 1 and leaves the '
        'router without a gradient; use renormalize=False'
      )

  def init(self, key, E, D):
    return base.init_linear(key, E, D, self.init_std) | {'bias': jnp.zeros(E)}

  def __call__(self, params, x_TD, ctx):
    # Expert 0 is what the others are measured by.
    bias_E = jnp.minimum(params['bias'], 0.0).at[0].set(0.0)
    logits_TE = base.linear_logits(params, x_TD) + bias_E
    found = base.affinities(logits_TE)
    chosen = base.choose(found['probs_TE'], ctx, self.k)
    weight_TK = chosen.of(found['probs_TE'])
    if self.renormalize:
      weight_TK = jax.nn.softmax(chosen.of(found['log_probs_TE']))
    return chosen.routing(weight_TK, **found)
