"""A model whose experts can be taken out, one program for all of them.

An expert that is out has a selection bias of -inf: routers choose the next
best, and weights that are shares of the chosen are shares of those. A router
that does not choose by scores (a hash, expert choice), or has no others to
choose, has the edges to that expert sent to nobody. Either way affinities stay:
weights that are raw probabilities do not grow by what the expert had, nor do
scores of a softmax, to which a balancing rule's bias is added.

What is out is an argument of the program, as a balancing rule's state; what
computes in an expert's place is a matter of parameters.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax import types
from moe_jax.analysis import inside
from moe_jax.balancing import base as balancing
from moe_jax.errors import UserError
from moe_jax.experts import base as experts_base
from moe_jax.routers import base as routers

NAME = 'removal'  # of the rule's state: this file's


@dataclasses.dataclass(frozen=True)
class Removal(balancing.Balance):
  """A rule that is its state: f32 [E], -inf for an expert that is out, else 0.

  It has no loss and never updates.
  """

  weight: float = 0.0
  scope: str = 'global'

  def stats(self, sums):
    return {}

  def init(self, E):
    return jnp.zeros(E, jnp.float32)

  def selection_bias(self, state):
    return state


@dataclasses.dataclass(frozen=True)
class Without(routers.Around):
  """router: whose edges to experts that are out go to nobody."""

  router: routers.Router

  def __call__(self, params, x_TD, ctx):
    r = self.router(params, x_TD, ctx)
    if isinstance(r, types.SlotRouting):
      raise UserError(
        f'the router {routers.name(self.router)} mixes tokens into slots of '
        'all experts: none can be taken out'
      )
    out_E = jnp.append(jnp.isneginf(ctx.selection_bias_E), False)
    out_N = out_E[r.expert_N]
    log_N = r.log_weight_N
    return r.replace(
      expert_N=jnp.where(out_N, r.num_experts, r.expert_N),
      weight_N=jnp.where(out_N, 0.0, r.weight_N),
      log_weight_N=None if log_N is None else jnp.where(out_N, -jnp.inf, log_N),
    )


def removable(model: Any) -> Any:
  """The model, of the same parameters, that takes `states` beside them."""
  return inside.changed(
    model,
    lambda m: dataclasses.replace(
      m, router=Without(m.router), balance=(*m.balance, Removal())
    ),
  )


def states(model: Any, balance: Any, out: Any = None) -> dict[str, Any]:
  """The variables 'balance' of a `removable` model.

  Args:
    model: before it was made removable.
    balance: its own; {} where it has none.
    out: (place, expert) of `inside.places`, or None.
  """
  found = jax.tree.map(lambda v: v, dict(balance or {}))
  for i, place in enumerate(inside.places(model)):
    config = model.stacks[place.stack]
    repeats = () if place.repeat is None else (config.split.repeats,)
    at = found
    for k in (*place.state, 'moe', 'state'):
      at = at.setdefault(k, {})
    E = place.moe.num_routed
    bias = at.setdefault(NAME, np.zeros((*repeats, E), np.float32))
    if out is not None and out[0] == i:
      own = bias if place.repeat is None else bias[place.repeat]
      own[out[1]] = -np.inf
  return found


def replaced(
  path: Sequence[str], params: Any, at: tuple, by: tuple, axes: Mapping
) -> Any:
  """Parameters where one expert computes in another's place; to be jitted.

  Args:
    path: `Place.experts`; layers that share them get it, too.
    params: of the model.
    at, by: the entry of each in a leaf that is stacked: an expert, or a repeat
      and an expert.
    axes: of the experts' parameters.
  """
  head, *rest = path
  if rest:
    return {**params, head: replaced(rest, params[head], at, by, axes)}
  stacked = lambda k: experts_base.is_stacked(axes[k])
  swap = lambda k, v: v.at[at].set(v[by]) if stacked(k) else v
  return {**params, head: {k: swap(k, v) for k, v in params[head].items()}}
