"""Experts leave, with their rows of the router.

As an owner does who opts out of FlexOlmo (Weijia Shi et al., "FlexOlmo: Open
Language Models for Flexible Data Use", 2025, arXiv:2507.07024, section 3): the
rest is to the bit as if they had not been there, biases of the selection and
the optimizer's state included. Choices are cut to the experts that are left.

Raw weights of the others grow, since a softmax is over fewer; masking their
logits with -inf would do the same.
"""

import dataclasses

from moe_jax import registry
from moe_jax.conversion import experts
from moe_jax.conversion.methods import base
from moe_jax.errors import UserError


@registry.register
@dataclasses.dataclass(frozen=True)
class Remove(base.Method):
  """experts: their numbers, in all layers. optimizer: its state is carried."""

  experts: tuple[int, ...] = ()
  optimizer: bool = False

  def __call__(self, key, model):
    found = experts.layers(model)
    E = next(iter(found.values())).num_experts
    wrong = [e for e in self.experts if type(e) is not int or not 0 <= e < E]
    if not self.experts or wrong:
      raise UserError(
        f'remove: experts={self.experts}; valid are numbers from 0 to {E - 1}'
      )
    if len(set(self.experts)) < len(self.experts):
      raise UserError(f'remove: experts={self.experts}; each once is wanted')
    left = [e for e in range(E) if e not in self.experts]
    if not left:
      raise UserError(f'remove: experts={self.experts} are all that there are')
    return experts.kept(model, dict.fromkeys(found, left))
