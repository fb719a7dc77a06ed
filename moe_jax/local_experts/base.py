"""What a zero-computation expert is.

It costs next to nothing, so its tokens are not sent: the layer adds its results
where the tokens are, outside of the exchange.
"""

import abc
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from moe_jax import types
from moe_jax.errors import UserError

Params = dict[str, jax.Array]


class LocalExperts(abc.ABC):
  """`count` experts of one kind, each a cheap function of a token.

  Concrete kinds are frozen dataclasses.

  Attributes:
    count: J, how many.
  """

  count: int

  def init(self, key: jax.Array, D: int) -> Params:
    """float32 parameters of all of them, leaves [J, ...]; {} for none."""
    del key, D
    return {}

  @abc.abstractmethod
  def __call__(
    self, params: Params, x_TD: jax.Array, weight_TJ: jax.Array
  ) -> jax.Array | None:
    """The weighted sum of their results, f32 [T, D]; None is zeros.

    Args:
      params: from `init`.
      x_TD: tokens, any float dtype.
      weight_TJ: f32 combine weights, 0 where an expert was not chosen.
    """


def check_count(kind: str, count: int) -> None:
  """Raises ValueError where count is no whole number from 1."""
  if not isinstance(count, int) or count < 1:
    raise UserError(f'{kind}: count={count!r} must be a whole number from 1')


def init(kinds: Sequence[LocalExperts], key: jax.Array, D: int) -> Any:
  """Parameters of several kinds, by place: {'0': {...}, ...}."""
  return {
    str(i): kind.init(jax.random.fold_in(key, i), D)
    for i, kind in enumerate(kinds)
  }


def evaluate(
  kinds: Sequence[LocalExperts],
  params: Any,
  x_TD: jax.Array,
  seated: types.Seated,
) -> jax.Array:
  """What the zero-computation experts add to the tokens of one group.

  Args:
    kinds: in the order in which their experts are counted.
    params: from `init`.
    x_TD: tokens.
    seated: with these experts as the last `num_local`.

  Returns:
    [T, D] in the dtype of x.

  Raises:
    ValueError: the routing's weights go on the experts' input.
  """
  r, T = seated.routing, x_TD.shape[0]
  if r.weight_on != 'output':
    raise UserError(
      'zero-computation experts need weights on their output; this router '
      f'has them on the {r.weight_on}'
    )
  J = r.num_local
  place_N = r.expert_N - (r.num_experts - J)
  mine_N = seated.kept_N & (place_N >= 0)
  place_N = jnp.where(mine_N, place_N, J)
  weight_TJ = jnp.zeros((T, J + 1), jnp.float32)
  weight_TJ = weight_TJ.at[r.token_N, place_N].add(
    jnp.where(mine_N, r.weight_N, 0.0)
  )
  y_TD, first = jnp.zeros(x_TD.shape, jnp.float32), 0
  for i, kind in enumerate(kinds):
    own_TJ = weight_TJ[:, first : first + kind.count]
    y = kind(params.get(str(i), {}), x_TD, own_TJ)
    y_TD = y_TD if y is None else y_TD + y
    first += kind.count
  return y_TD.astype(x_TD.dtype)
