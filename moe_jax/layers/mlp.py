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
    kind: the expert kind; its parameters have no expert axis here, and its
      dropout draws for every token whatever the kind's mask.
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

    def init(key):
      params = experts_base.initialise(self.kind, key, 1, D)

      def one(k):
        stacked = experts_base.is_stacked(axes[k])
        v = params[k][0] if stacked else params[k]
        return nn.LogicallyPartitioned(v, axes[k][stacked:])

      return {k: one(k) for k in axes}

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
