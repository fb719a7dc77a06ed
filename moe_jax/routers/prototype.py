"""Prototype routing: the experts whose given centroids are nearest.

Xu Liu et al., "Moirai-MoE: Empowering Time Series Foundation Models with Sparse
Mixture of Experts", ICML 2025, arXiv:2410.10469, section 3: the tokens that
reach a layer of a trained dense model are clustered into E (k-means), and the
centroids, frozen, are the router. A token's logits are its distances to them;
the k nearest are chosen, and the softmax over the chosen weighs the results.

Trap: the published code (uni2ts) takes the FARTHEST, and the softmax of plus
the distance; its checkpoints want nearest=False. The centroids are a constant
of the program and no parameter: no optimizer moves them, no weight decay
shrinks them, no checkpoint holds them. The file is `np.save`'s, f32 [M, E, D],
of the M MoE layers of a stack; a layer after the M-th has the last. Without a
file they are drawn, normal, from `seed` and the layer: tokens are parted at
random, but alike tokens alike.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax import npy_files, registry
from moe_jax.errors import UserError
from moe_jax.routers import base


@functools.cache
def load(path: str) -> np.ndarray:
  """f32 [M, E, D] of a file."""
  return npy_files.read(path, 3).astype(np.float32)


@registry.register
@dataclasses.dataclass(frozen=True)
class Prototype(base.Choosing):
  """k nearest centroids of a token.

  Attributes:
    k: experts of a token (paper: 2 of 32).
    path: of the centroids; '' draws them.
    nearest: False takes the farthest, as the published code does.
    seed: of centroids that are drawn.
  """

  k: int = 2
  path: str = ''
  nearest: bool = True
  seed: int = 0

  def init(self, key, E, D):
    if self.path and load(self.path).shape[1:] != (E, D):
      raise UserError(
        f'prototype: {self.path} has shape {load(self.path).shape}; wanted is '
        f'(MoE layers, {E} experts, width {D})'
      )
    return {}

  def centroids(self, ctx, E, D):
    """f32 [E, D], of the layer."""
    layer = 0 if ctx.layer is None else ctx.layer
    if self.path:
      return jnp.asarray(load(self.path))[layer]  # clipped beyond M
    key = jax.random.fold_in(jax.random.key(self.seed), layer)
    return jax.random.normal(key, (E, D))

  def __call__(self, params, x_TD, ctx):
    x_TD = x_TD.astype(jnp.float32)
    c_ED = self.centroids(ctx, ctx.num_experts, x_TD.shape[1])
    dot_TE = base.linear_logits({'kernel': c_ED.T}, x_TD)
    square_TE = (x_TD**2).sum(-1, keepdims=True) + (c_ED**2).sum(-1)
    # The root has no gradient at 0.
    far_TE = jnp.sqrt(jnp.maximum(square_TE - 2 * dot_TE, 1e-6))
    logits_TE = -far_TE if self.nearest else far_TE
    chosen = base.choose(logits_TE, ctx, self.k)
    weight_TK = jax.nn.softmax(chosen.of(logits_TE))
    return chosen.routing(weight_TK, **base.affinities(logits_TE))
