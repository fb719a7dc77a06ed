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


# Those whose derivative needs more than their result (its tanh or logistic).
SMOOTH = ('gelu', 'gelu_exact', 'silu')

# Dropout of an expert's hidden activations: drawn for each row and unit (Mesh-
# TensorFlow); one draw for each unit of an expert, shared by all its rows
# (flaxformer, by a broadcast over the token buffer); or for the whole expert
# (ST-MoE, arXiv:2202.08906, appendix J: no gain).
MASKS = ('row', 'shared', 'expert')

# Logical axes that parameters of experts may have.
AXES = {'expert', 'embed', 'mlp', None}


@dataclasses.dataclass(frozen=True)
class Ops:
  """The layout-dependent operations, bound by a dispatch to its rows.

  What all experts share has no axis E: a matrix [A, B], a vector [A]. It goes
  through these operations too, since a layout's rows may be garbage where no
  token is; they keep it out of values and gradients.

  Attributes:
    dot: (rows [..., A], w [E, A, B] or [A, B]) -> [..., B], each row times the
      matrix of its own expert, or of all.
    spread: a vector per expert [E, A], laid on the rows of that expert; or [A],
      on all.
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
    axes: logical axes of each parameter. The first is 'expert', but for the
      matrices and vectors that all experts share, which have none.
    dropout: rate on the hidden activations in training.
    kept: for planning, arrays [R, F] that XLA keeps of a forward pass: results
      of products into the hidden width, of the activation of a gate, what goes
      into the last product, and what the derivative of a SMOOTH activation or
      of a gain needs.
    made: arrays [R, F] of gradients that the products into the hidden width
      take.
  """

  axes: dict[str, tuple[str | None, ...]]
  dropout: float = 0.0
  kept: int = 3
  made: int = 1

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


def is_stacked(axes: tuple[str | None, ...]) -> bool:
  """Whether a parameter with these axes has a part for each expert."""
  return axes[:1] == ('expert',)


def initialise(
  kind: Experts, key: jax.Array, E: int, D: int, identical: bool = False
) -> Params:
  """`kind.init`, held against `kind.axes`; all experts equal if `identical`.

  Raises:
    ValueError: names the parameter that does not fit its axes.
  """
  drawn = 1 if identical else E
  params, axes = kind.init(key, drawn, D), kind.axes
  for k in params | axes:
    shape = params[k].shape if k in params else None
    wrong = _misfit(shape, axes.get(k), drawn, D)
    if wrong:
      raise UserError(
        f'experts {type(kind).__name__}: parameter {k!r} of shape {shape} does '
        f'not fit its axes {axes.get(k)}: {wrong}'
      )
  whole = lambda v: jnp.broadcast_to(v, (E, *v.shape[1:]))
  return {k: whole(v) if is_stacked(axes[k]) else v for k, v in params.items()}


def sizes(kind: Experts, E: int, D: int, parts: int = 1) -> dict[str, int]:
  """What planning takes of E experts whose hidden width is split into parts.

  Returns:
    'hidden', F over the parts; 'products', multiplications of a row by the
    matrices of its expert; 'inner' and 'outer', numbers in the matrices of all
    E before and after the hidden width; 'kept' and 'made', as in `Experts`.
  """
  shapes = jax.eval_shape(lambda: kind.init(jax.random.key(0), E, D))
  found = {'hidden': 0, 'products': 0, 'inner': 0, 'outer': 0}
  for k, axes in kind.axes.items():
    own = axes[is_stacked(axes) :]
    if len(own) < 2:
      continue
    size = shapes[k].size // (parts if 'mlp' in own else 1)
    found['products'] += size // (E if is_stacked(axes) else 1)
    after = own[0] == 'mlp' or own[-1] == 'embed'
    found['outer' if after else 'inner'] += size
    if 'mlp' in own:
      found['hidden'] = shapes[k].shape[axes.index('mlp')] // parts
  return found | {'kept': kind.kept, 'made': kind.made}


def _misfit(shape, axes, E: int, D: int) -> str:
  """What is wrong with a parameter; '' if nothing."""
  if shape is None or axes is None:
    return f'`{"axes" if axes is None else "init"}` lacks it'
  if not set(axes) <= AXES:
    return f'valid: {", ".join(map(repr, sorted(AXES, key=str)))}'
  if len(axes) != len(shape):
    return f'{len(shape)} dimensions, {len(axes)} axes'
  if 'expert' in axes[1:]:
    return "'expert' must be the first"
  if not is_stacked(axes) and len(shape) > 2:
    return 'what all experts share is a matrix or a vector'
  sizes = {'expert': E, 'embed': D}
  for n, a in zip(shape, axes):
    if n != sizes.get(a, n):
      return f'{a!r} has size {sizes[a]}, not {n}'
  return ''


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
