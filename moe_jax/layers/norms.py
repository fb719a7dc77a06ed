"""Root-mean-square normalisation."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class RMSNorm(nn.Module):
  """x / rms(x) * scale, in float32 (Zhang & Sennrich 2019, arXiv:1910.07467).

  No mean, no bias, as in T5's layer norm.
  """

  dtype: Any = jnp.float32
  epsilon: float = 1e-6

  @nn.compact
  def __call__(self, x):
    """Normalises the last axis; returns `dtype`."""
    init = nn.with_logical_partitioning(nn.initializers.ones, (None,))
    scale = self.param('scale', init, x.shape[-1:], jnp.float32)
    x = x.astype(jnp.float32)
    rms = jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + self.epsilon)
    return (x * rms * scale).astype(self.dtype)
