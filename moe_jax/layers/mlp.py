"""The dense FFN: an expert kind with one expert, outside any dispatch."""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from moe_jax.experts import base as experts_base
from moe_jax.kernels import permute, projection
from moe_jax.parallel import rules


class FFN(nn.Module):
  """A feed-forward sub-layer of the kind that experts are.

  Attributes:
    kind: the expert kind; its parameters lose their leading expert axis, and
      its dropout draws for every token whatever the kind's mask.
    mesh: to pin the hidden activations' sharding; None for one device.
    dtype: of the computation.
  """

  kind: experts_base.Experts
  mesh: Any = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BLD, *, train: bool):
    """x [B, L, D] -> [B, L, D] in `dtype`."""
    D, axes = x_BLD.shape[-1], self.kind.axes
    names = tuple(axes)

    def init(key):
      params = self.kind.init(key, 1, D)
      return {
        k: nn.LogicallyPartitioned(params[k][0], axes[k][1:]) for k in names
      }

    params = self.param('ffn', init)

    def spread(b):
      shape = (*x_BLD.shape[:-1], b.shape[-1])
      return permute.laid(b, shape).astype(self.dtype)

    # XLA splits the hidden width over the `model` axis by itself here, so
    # nothing is a partial sum.
    ops = experts_base.Ops(
      dot=functools.partial(projection.project, 'bld,df->blf'),
      spread=spread,
      once=spread,
      drop=lambda x, rate, _: nn.Dropout(rate, deterministic=not train)(x),
    )
    y_BLD = self.kind(params, x_BLD.astype(self.dtype), ops)
    return rules.constrain(y_BLD, ('batch', None, None), self.mesh)
