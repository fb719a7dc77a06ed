"""Experts twice, or more often: copies beside them, with their rows.

Where all are copied and a token has as many times more choices, nothing
changes: of a softmax each copy has its part of the weight, and where weights
are not shared out (raw sigmoids) outputs are divided; other routers are
refused. Where `experts` names some the choices stay, and so does nothing else:
two copies take the places of two experts, as replicas of busy ones do. No
paper: upcycling's step, from a mixture.
"""

import dataclasses

import numpy as np

from moe_jax import registry
from moe_jax.conversion import experts, splitting
from moe_jax.conversion.methods import base
from moe_jax.errors import UserError


@registry.register
@dataclasses.dataclass(frozen=True)
class Duplicate(base.Method):
  """How often which experts are to be there.

  Attributes:
    times: of each.
    experts: their numbers, in all layers; () is all, with more choices.
    router: call string of the new one, where all are; '' is the old with k
      times as large.
  """

  times: int = 2
  experts: tuple[int, ...] = ()
  router: str = ''

  def __call__(self, key, model):
    if self.times < 2:
      raise UserError(f'duplicate: times={self.times}; valid from 2')
    if not self.experts:
      return splitting.all_experts(model, self.times, False, self.router)
    found = experts.layers(model)
    E = next(iter(found.values())).num_experts
    wrong = [e for e in self.experts if e not in range(E)]
    if wrong or self.router:
      raise UserError(
        f'duplicate: experts={self.experts}, router={self.router!r}; valid are '
        f"numbers from 0 to {E - 1}, and '' where some are named"
      )
    often = [self.times if e in self.experts else 1 for e in range(E)]
    return experts.kept(model, dict.fromkeys(found, np.repeat(range(E), often)))
