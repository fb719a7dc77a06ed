"""Top-k with a k of each layer that is lowered late in training.

Qingguo Hu et al., "Sigma-MoE-Tiny Technical Report", 2025, arXiv:2512.16248,
its progressive sparsification: the lower layers, which one expert of many does
not balance, begin with more experts a token, and go down to the target near the
end of training. The published code has a list of k by layer, and restarts from
a checkpoint with another list; here the step decides inside one program.
Recalled: 8, 8, 6, 6, 4, 4, 2, 2 in the first eight layers, then 1, to about 90
% of training.

Shapes do not change: there are max(first) choices a token, of which the later
ones go unused. With a capacity the seats, and in plans the FLOPs, are those of
the largest k throughout; dropless dispatches compute what is used. Evaluation,
which knows no step, has the target k: before the switch it says what switching
now would cost. Weights are raw probabilities, so that k=1 learns. With binding
capacity and k above 1 not causal: see `top_k`.
"""

import dataclasses

import jax.numpy as jnp

from moe_jax import registry
from moe_jax.errors import UserError
from moe_jax.routers import base


@registry.register
@dataclasses.dataclass(frozen=True)
class ScheduledTopK(base.Linear):
  """k experts a token in the end; further options are those of `base.Linear`.

  Attributes:
    k: of all layers from step `until`, and of those that `first` does not name.
    first: k of the first MoE layers of the stack before that step.
    until: the step of the switch.
  """

  k: int = 1
  first: tuple[int, ...] = (8, 8, 6, 6, 4, 4, 2, 2)
  until: int = 0

  def __post_init__(self):
    super().__post_init__()
    for k in (self.k, *self.first):
      base.check_k('scheduled_top_k', k)
    if not isinstance(self.until, int) or self.until < 1:
      raise UserError(
        f'scheduled_top_k: until={self.until!r} must be a step from 1'
      )

  @property
  def most(self) -> int:
    return max(self.k, *self.first)

  def check(self, E):
    base.check_k('scheduled_top_k', self.most, E)

  def used(self, ctx):
    """int32, choices used in the layer at the step."""
    if not ctx.train:
      return jnp.int32(self.k)
    step = base.known(ctx, 'step', 'scheduled_top_k')
    layer = base.known(ctx, 'layer', 'scheduled_top_k')
    k_M = jnp.array([*self.first, self.k], jnp.int32)
    k = k_M[jnp.minimum(layer, len(self.first))]
    return jnp.where(step < self.until, k, self.k)

  def __call__(self, params, x_TD, ctx):
    found = self.affinities(params, x_TD, ctx)
    chosen = self.choose(found, ctx, self.most)
    used_TK = jnp.arange(self.most) < self.used(ctx)
    return chosen.routing(chosen.of(found['probs_TE']), used_TK, **found)

  def experts_per_token(self, E):
    return float(self.most)
