"""A Flax NNX module around the pure layer."""

from typing import Any

import jax
from flax import nnx

from moe_jax import types
from moe_jax.layers import moe, streams
from moe_jax.parallel import rules


class Balance(nnx.Variable):
  """State of a balancing rule: no parameter, and not for optimizers."""


class MoE(nnx.Module):
  """`moe.MoE` with its parameters and the state of its balancing rules.

  The parameters are attributes of the same names.

  Attributes:
    core: the pure layer.
    state: of the balancing rules; `update` changes it.
    rngs: that training draws from, by the streams 'router' and 'dropout'.
  """

  def __init__(self, core: moe.MoE, D: int, *, rngs: nnx.Rngs):
    """Parameters for width D, each sharded over the mesh as in training."""
    self.core, self.rngs = core, rngs.fork()
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
    key: streams.Key = None,
    *,
    train: bool,
    layer: int | jax.Array = 0,
  ) -> tuple[jax.Array, Any, types.MoEAux]:
    """As `core`; without a key, training takes those of `rngs`."""
    params = {name: _arrays(getattr(self, name)) for name in self.names}
    if key is None and train:
      known = lambda stream: stream in self.rngs or 'default' in self.rngs
      own = {k: v for k, v in streams.STREAMS.items() if known(v)}
      key = {k: self.rngs[stream]() for k, stream in own.items()}
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
