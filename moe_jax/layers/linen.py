"""Flax Linen modules around the pure layers: their parameters and keys."""

from typing import Any

import flax.linen as nn
import jax

from moe_jax import types
from moe_jax.layers import boxes, mlp, moe


class MoE(nn.Module):
  """`moe.MoE`; its state is the variable 'state' of the collection 'balance'.

  Random streams are 'router', where there is one, and 'dropout'. The state
  stays as it is: `core.update` makes the next one.
  """

  core: moe.MoE

  @nn.compact
  def __call__(
    self, x_BLD, tokens=None, carry=(), pool=None, *, train: bool, layer=0
  ) -> tuple[jax.Array, Any, types.MoEAux]:
    """As `core`; `pool`, of `Pool`, are experts that layers share."""
    core, D = self.core, x_BLD.shape[-1]
    made, axes = core.initializers(D), core.axes(D)
    params, keys = {}, {}
    if pool is not None:
      params['experts'] = pool
    if 'dense' in made:
      w_dense, keys['dense'] = FFN(core.ffn, name='dense').parts(D, train)
      params['dense'] = {'ffn': w_dense}
    for name, init in made.items():
      if name not in params:
        own = boxes.boxed(init, axes[name], core.mesh)
        params[name] = self.param(name, own)
    state = {}
    if core.init_state():
      state = self.variable('balance', 'state', core.init_state).value
    if self.has_rng('router'):
      keys['router'] = self.make_rng('router')
    if core.draws(train):
      keys['dropout'] = self.make_rng('dropout')
    return core(
      params, state, x_BLD, tokens, carry, keys, train=train, layer=layer
    )


class Pool(nn.Module):
  """Experts that MoE layers share: parameters alone."""

  core: moe.MoE
  D: int

  @nn.compact
  def __call__(self) -> dict[str, jax.Array]:
    init = self.core.initializers(self.D)['experts']
    axes = self.core.axes(self.D)['experts']
    return self.param('experts', boxes.boxed(init, axes, self.core.mesh))


class FFN(nn.Module):
  """`mlp.FFN`; dropout has the stream 'dropout'."""

  core: mlp.FFN

  def __call__(self, x_BLD, *, train: bool) -> jax.Array:
    """x [B, L, D] -> [B, L, D]."""
    params, key = self.parts(x_BLD.shape[-1], train)
    return self.core(params, x_BLD, key, train=train)

  @nn.compact
  def parts(self, D: int, train: bool):
    """What a call takes: parameters, and a key where it draws."""
    core = self.core
    init = boxes.boxed(core.init, core.axes(), core.mesh)
    params = self.param('ffn', init, D)
    # Keys follow a module's path: by this name they are those of nn.Dropout.
    draws = core.draws(train)
    return params, _Key(name='Dropout_0')() if draws else None


class _Key(nn.Module):
  def __call__(self):
    return self.make_rng('dropout')
