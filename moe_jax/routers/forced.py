"""Forced: another router's weights, at experts that are given.

Wenhan Ma et al., "Stabilizing MoE Reinforcement Learning by Aligning Training
and Inference Routers", 2025, arXiv:2510.11370 (recalled), replays in the
trainer the choices that the sampler's routers made; gradients flow through the
trainer's own softmax at these. So here: the experts are those of a record,
everything else (weights, carries, what rules see) is the router's own. What a
run did happens again in another layer, dispatch, mesh or codebase; to the bit
in one compiled program, which is given OWN and then the record (another one may
round otherwise in the last digit).

The batch brings 'forced' [B, L, M, K], the experts of each of M MoE layers:
fewer than the router chooses, -1 is nobody, OWN (-2) anywhere in a token's is
one that the router routes as ever. Their order is that of seating. A token's
experts must differ. A choice that is given is sent, though the router's own
rule would leave it unused: its weight may be 0 then, and where weights are
shares of k choices those that are not given keep theirs, unsent. Where experts
choose tokens, one that is given more than it has room for keeps its best.

Not for routers of slots or product keys, whose edges are not a token's choice.
`replay` is for experts set by hand: it knows one softmax, and no other router.
"""

import dataclasses

import jax.numpy as jnp

from moe_jax import registry
from moe_jax.errors import UserError
from moe_jax.kernels import chosen
from moe_jax.routers import base


@registry.register
@dataclasses.dataclass(frozen=True)
class Forced(base.Around):
  """router: a router or its call string, whose parameters these are."""

  router: base.Router | str = 'top_k()'

  def __post_init__(self):
    if isinstance(self.router, str):
      built = registry.build('routers', self.router)
      object.__setattr__(self, 'router', built)
    super().__post_init__()

  def __call__(self, params, x_TD, ctx):
    given_TK = base.known(ctx, 'forced_TK', 'forced')
    r = self.router(params, x_TD, ctx.replace(given_TK=given_TK))
    if not r.given:
      raise UserError(
        f'forced: experts of a token cannot be given to the router '
        f'{base.name(self.router)}, which does not choose for tokens one by one'
      )
    live = self.router(params, x_TD, ctx)  # unless recorded, never computed
    pairs_TE = [chosen.sent(e, len(x_TD)) for e in (r, live)]
    both_T = jnp.logical_and(*pairs_TE).sum(-1)
    terms = {'given': pairs_TE[0].sum(-1), 'agreed': both_T}
    return r.replace(terms=r.terms | terms)
