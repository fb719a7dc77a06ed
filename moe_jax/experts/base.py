"""What an expert kind is, and the operations a dispatch binds for it."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from moe_jax.errors import UserError

Params = dict[str, jax.Array]

# 'gelu' is the tanh approximation, as in T5 and Flax; torch's default is the
# exact one.
ACTIVATIONS: dict[str, Callable] = {
  'gelu': lambda x: jax.nn.gelu(x, approximate=True),
  'gelu_exact': lambda x: jax.nn.gelu(x, approximate=False),
  'relu': jax.nn.relu,
  'silu': jax.nn.silu,
}


# Dropout of an expert's hidden activations: drawn for each row and unit (Mesh-
# TensorFlow); one draw for each unit of an expert, shared by all its rows
# (flaxformer, by a broadcast over the token buffer); or for the whole expert
# (ST-MoE, arXiv:2202.08906, appendix J: no gain).
MASKS = ('row', 'shared', 'expert')


@dataclasses.dataclass(frozen=True)
class Ops:
  """The layout-dependent operations, bound by a dispatch to its rows.

  Attributes:
    dot: (rows [..., A], w [E, A, B]) -> [..., B], each row times the matrix of
      its own expert.
    spread: a vector per expert [E, A], laid on the rows of that expert.
    once: like `spread`, for a vector added after a product whose inner
      dimension is split over the `model` axis: those partial sums are added up
      later, so only one of them may hold it.
    drop: (hidden [..., F], rate, mask) -> hidden, dropout in training and the
      identity otherwise; `mask` is one of MASKS.
  """

  dot: Callable[[Any, jax.Array], Any]
  spread: Callable[[jax.Array], Any]
  once: Callable[[jax.Array], Any]
  drop: Callable[[Any, float, str], Any]


class Experts(abc.ABC):
  """What an expert computes on grouped rows, in whatever layout.

  Concrete kinds are frozen dataclasses. The result on a `model`-sharded hidden
  width is a partial sum.

  Attributes:
    axes: logical axes of each parameter, the first of them 'expert'.
    dropout: rate on the hidden activations in training.
  """

  axes: dict[str, tuple[str | None, ...]]
  dropout: float = 0.0

  @abc.abstractmethod
  def init(self, key: jax.Array, E: int, D: int) -> Params:
    """float32 parameters of E experts at model width D."""

  @abc.abstractmethod
  def __call__(self, params: Params, rows: jax.Array, ops: Ops) -> jax.Array:
    """Rows [..., D] -> [..., D] in the rows' dtype."""

  def routing_features(
    self, params: Params, total: Callable[[jax.Array], jax.Array]
  ) -> dict[str, jax.Array]:
    """What routers may see of these experts' weights: f32 leaves [E, ...].

    Args:
      params: as in the call; the hidden width may be split over `model`.
      total: the sum over the parts of the hidden width.
    """
    del params, total
    return {}


def activation(name: str) -> Callable:
  """The activation of this name, or a ValueError that lists them."""
  if name not in ACTIVATIONS:
    raise UserError(
      f'activation={name!r}; valid: {", ".join(sorted(ACTIVATIONS))}'
    )
  return ACTIVATIONS[name]


def check(d_ff: int, act: str, dropout: float, mask: str) -> None:
  """Raises ValueError for fields that most kinds have."""
  activation(act)
  if d_ff < 1:
    raise UserError(f'd_ff={d_ff}: the hidden width must be at least 1')
  if not 0 <= dropout < 1:
    raise UserError(f'dropout={dropout} must be from 0 to below 1')
  if mask not in MASKS:
    raise UserError(f'dropout_mask={mask!r}; valid: {", ".join(MASKS)}')


def init_kernel(key: jax.Array, E: int, A: int, B: int, scale: float):
  """[E, A, B]: truncated normal, variance scale / A.

  The fan-in is one expert's (`batch_axis`): taken over the stacked array it
  would be E times too large.
  """
  init = jax.nn.initializers.variance_scaling(
    scale, 'fan_in', 'truncated_normal', batch_axis=0
  )
  return init(key, (E, A, B), jnp.float32)
