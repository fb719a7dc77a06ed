"""The dense FFN: an expert kind with one expert, outside any dispatch."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from moe_jax.experts import base as experts_base
from moe_jax.kernels import permute, projection
from moe_jax.layers import streams
from moe_jax.parallel import rules


@dataclasses.dataclass(frozen=True)
class FFN:
  """A feed-forward sub-layer of the kind that experts are.

  Attributes:
    kind: the expert kind; its parameters have no expert axis here, and its
      dropout draws for every token whatever the kind's mask.
    mesh: to pin the hidden activations' sharding; None for one device.
    dtype: of the computation.
  """

  kind: experts_base.Experts
  mesh: jax.sharding.Mesh | None = None
  dtype: Any = jnp.float32

  def init(self, key: jax.Array, D: int) -> experts_base.Params:
    """float32 parameters for model width D."""
    params = experts_base.initialise(self.kind, key, 1, D)
    own = lambda k: params[k][0] if self._stacked(k) else params[k]
    return {k: own(k) for k in params}

  def axes(self) -> dict[str, tuple[str | None, ...]]:
    """Logical axes of each parameter."""
    return {k: v[self._stacked(k) :] for k, v in self.kind.axes.items()}

  def _stacked(self, name: str) -> bool:
    return experts_base.is_stacked(self.kind.axes[name])

  def draws(self, train: bool) -> bool:
    """Whether a call takes a key."""
    return train and self.kind.dropout > 0

  def __call__(
    self,
    params: experts_base.Params,
    x_BLD: jax.Array,
    key: jax.Array | None = None,
    *,
    train: bool,
  ) -> jax.Array:
    """x [B, L, D] -> [B, L, D] in `dtype`; the key is that of its dropout."""
    key = streams.wanted(key, self.draws(train))

    def drop(hidden_BLF, rate, mask):
      if key is None:
        return hidden_BLF
      keep_BLF = jax.random.bernoulli(key, 1 - rate, hidden_BLF.shape)
      zeros_BLF = jnp.zeros_like(hidden_BLF)
      return jax.lax.select(keep_BLF, hidden_BLF / (1 - rate), zeros_BLF)

    def spread(b):
      shape = (*x_BLD.shape[:-1], b.shape[-1])
      return permute.laid(b, shape).astype(self.dtype)

    # XLA splits the hidden width over the `model` axis by itself here, so
    # nothing is a partial sum.
    ops = experts_base.Ops(
      dot=functools.partial(projection.project, 'bld,df->blf'),
      spread=spread,
      once=spread,
      drop=drop,
    )
    y_BLD = self.kind(params, x_BLD.astype(self.dtype), ops)
    return rules.constrain(y_BLD, ('batch', None, None), self.mesh)


def init_gate(key: jax.Array, D: int) -> jax.Array:
  """f32 [D, 1], a gate's vector."""
  init = jax.nn.initializers.variance_scaling(0.1, 'fan_in', 'truncated_normal')
  return init(key, (D, 1), jnp.float32)


def gated(y_BLD: jax.Array, x_BLD: jax.Array, w_D1: jax.Array) -> jax.Array:
  """y sigmoid(x w), in the dtype of y."""
  logit_BL1 = jnp.einsum(
    'bld,de->ble',
    x_BLD.astype(jnp.float32),
    w_D1,
    precision=jax.lax.Precision.HIGHEST,
  )
  # In float32: the gradient of the gate is a sum over the width.
  return (y_BLD * jax.nn.sigmoid(logit_BL1)).astype(y_BLD.dtype)
