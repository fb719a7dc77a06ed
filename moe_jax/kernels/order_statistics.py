"""Order statistics, also of arrays that are spread over devices."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def top_k(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  """`jax.lax.top_k`, for results of which a part is taken.

  XLA knows a top-k by the slice that follows a sort. A slice of the result
  merges with that one, and what is left sorts everything, index and all: six
  times as slow on CPU for 16 of 32.
  """
  values, indices = jax.lax.top_k(x, k)
  # One barrier for both is a tuple, on which XLA's CPU compiler aborts where it
  # decomposes the top-k (jaxlib 0.10.2).
  apart = jax.lax.optimization_barrier
  return apart(values), apart(indices)


def largest(
  values_TE: jax.Array,
  mask_T: jax.Array,
  rank: jax.Array,
  total: Callable[[jax.Array], jax.Array],
) -> jax.Array:
  """The rank-th largest of each column, exactly; by counting, digit by digit.

  Args:
    values_TE: f32, this device's part of the rows; no NaN.
    mask_T: bool, rows that count.
    rank: int32, from 1 to the number of rows that count.
    total: the sum over all parts; it is called 8 times with int32 [E, 16].

  Returns:
    f32 [E].
  """
  bits = jax.lax.bitcast_convert_type(values_TE, jnp.uint32)
  # Unsigned numbers in the order of the floats.
  top = jnp.uint32(1 << 31)
  key_TE = jnp.where(bits < top, bits | top, ~bits)
  digit_16 = jnp.arange(16, dtype=jnp.uint32)

  def step(i, found_E):
    shift = jnp.uint32(28) - 4 * i.astype(jnp.uint32)
    bar_E16 = found_E[:, None] + (digit_16 << shift)
    above_TE16 = (key_TE[:, :, None] >= bar_E16) & mask_T[:, None, None]
    enough_E16 = total(above_TE16.sum(0, dtype=jnp.int32)) >= rank
    # Enough are above the bars of small digits: the largest such digit.
    digit_E = jnp.maximum(enough_E16.sum(-1, dtype=jnp.uint32), 1) - 1
    return found_E + (digit_E << shift)

  found_E = jnp.zeros(values_TE.shape[1], jnp.uint32)
  found_E = jax.lax.fori_loop(0, 8, step, found_E)
  bits_E = jnp.where(found_E >= top, found_E ^ top, ~found_E)
  return jax.lax.bitcast_convert_type(bits_E, jnp.float32)


def limited(
  scores_TE: jax.Array, groups: int, kept: int, per_group: int
) -> jax.Array:
  """Scores, -inf outside of each token's best groups of experts.

  Args:
    scores_TE: f32.
    groups: equal blocks of experts; divides E.
    kept: groups of a token.
    per_group: a group's score is the sum of that many of its best experts.
  """
  T, E = scores_TE.shape
  inside = scores_TE.reshape(T, groups, -1)
  group_T = jax.lax.top_k(inside, per_group)[0].sum(-1)
  _, kept_T = jax.lax.top_k(group_T, kept)
  open_T = jnp.zeros(group_T.shape, bool)
  open_T = open_T.at[jnp.arange(T)[:, None], kept_T].set(True)
  return jnp.where(open_T[..., None], inside, -jnp.inf).reshape(T, E)
