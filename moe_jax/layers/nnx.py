"""A Flax NNX module around the pure layer."""

from typing import Any

import jax
from flax import nnx

from moe_jax import types
from moe_jax.layers import moe
from moe_jax.parallel import rules


class Balance(nnx.Variable):
  """State of a balancing rule: no parameter, and not for optimizers."""


class MoE(nnx.Module):
  """`moe.MoE` with its parameters and the state of its balancing rules.

  The parameters are attributes of the same names; random streams are 'params',
  'router' and 'dropout'.

  Attributes:
    core: the pure layer.
    state: of the balancing rules; `update` changes it.
  """

  def __init__(self, core: moe.MoE, D: int, *, rngs: nnx.Rngs):
    """Parameters for width D, each sharded over the mesh as in training."""
    self.core = core
    place = lambda v, names: nnx.Param(rules.constrain(v, names, core.mesh))
    axes = core.axes(D)
    self.names = tuple(axes)
    for name, init in core.initializers(D).items():
      params = jax.tree.map(place, init(rngs.params()), axes[name])
      setattr(self, name, nnx.data(params))
    self.state = nnx.data(jax.tree.map(Balance, core.init_state()))

  def __call__(
    self,
    x_BLD: jax.Array,
    tokens: types.Tokens | None = None,
    carry: Any = (),
    *,
    train: bool,
    layer: int | jax.Array = 0,
    rngs: nnx.Rngs | None = None,
  ) -> tuple[jax.Array, Any, types.MoEAux]:
    """As `core`; `rngs` where something is random."""
    params = {name: _arrays(getattr(self, name)) for name in self.names}
    key = rngs and {
      'router': rngs.router(),
      'dropout': rngs.dropout(),
      'dense': rngs.dropout(),
    }
    return self.core(
      *(params, _arrays(self.state), x_BLD, tokens, carry, key),
      train=train,
      layer=layer,
    )

  def update(self, stats: dict[str, Any]) -> None:
    """The state after an optimizer step, from `MoEAux.stats` of its batch."""
    new = self.core.update(_arrays(self.state), stats)
    jax.tree.map(_put, self.state, new, is_leaf=_is_variable)


def _is_variable(v):
  return isinstance(v, nnx.Variable)


def _arrays(tree):
  return jax.tree.map(lambda v: v[...], tree, is_leaf=_is_variable)


def _put(variable, value):
  variable[...] = value
