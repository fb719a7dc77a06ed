"""Root-mean-square normalisation."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from moe_jax.layers import boxes


class RMSNorm(nn.Module):
  """x / rms(x) * scale, in float32 (Zhang & Sennrich 2019, arXiv:1910.07467).

  No mean, no bias, as in T5's layer norm.
  """

  dtype: Any = jnp.float32
  epsilon: float = 1e-6
  scaled: bool = True  # False: no gain (ST-MoE, arXiv:2202.08906, table 2)

  @nn.compact
  def __call__(self, x):
    """Normalises the last axis; returns `dtype`."""
    x = x.astype(jnp.float32)
    rms = jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + self.epsilon)
    x *= rms
    if self.scaled:
      init = boxes.boxed(nn.initializers.ones, (None,))
      x *= self.param('scale', init, x.shape[-1:], jnp.float32)
    return x.astype(self.dtype)
