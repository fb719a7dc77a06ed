"""Capacity rules: how many rows an expert has in a group, by call string.

Published codes disagree on three things: whether the capacity factor counts
the K choices of a token, how the product is rounded, and a least capacity,
which silently multiplies the factor where groups are small. For (T, E, K,
factor), rows by rule at default options:

  | rule            | (1024, 64, 2, 1.25) | (100, 8, 1, 1.25) | (60, 8, 1, 1) |
  | per_choice      | 40                  | 16                | 8             |
  | paper           | 20                  | 16                | 8             |
  | mesh_tensorflow | 20                  | 15                | 7             |
  | t5x             | 20                  | 16                | 8             |
  | vmoe            | 40                  | 16                | 8             |
  | lingvo          | 20                  | 16                | 8             |

A rule maps (factor, T, K, E, Z) to the rows of an expert and of a local one,
None for as many as there can be: T tokens of the group, K mean choices of a
token, E experts, Z zero-computation ones beside them. Other codebases' rules
round in floats as they do; ours and the papers' are exact in the decimal number
written (in floats int(280 / 3 * 1.2) is 111, not 112).
"""

import fractions
import functools
import math
from collections.abc import Callable

from moe_jax import registry
from moe_jax.errors import UserError

Rule = Callable[[float, int, float, int, int], tuple[int, int | None]]


def rows(
  rule: Rule,
  factor: float | None,
  T: int,
  K: float,
  E: int,
  Z: int = 0,
  most: int | None = None,
) -> tuple[int, int]:
  """Rows of an expert in a group, from 1 to `most`; and of a local expert.

  Rows beyond `most` would stay empty whatever the rule says. None is dropless:
  `most` rows.

  Args:
    rule: from `build`.
    factor: what it makes rows from.
    T, K: tokens of the group, mean choices of a token.
    E, Z: experts, and zero-computation ones beside them.
    most: edges that one expert can get from T tokens; None is T, where no
      token chooses an expert twice.

  Raises:
    ValueError: a factor that is not positive.
  """
  most = T if most is None else most
  if factor is None:
    return most, most
  if not factor > 0:
    raise UserError(
      f'capacity_factor={factor} must be positive; None is dropless'
    )
  sent, local = rule(factor, T, K, E, Z)
  limit = lambda C: most if C is None else max(1, min(C, most))
  return limit(sent), limit(local)


@functools.cache  # rules of one call string are equal, as layers must be
def build(spec: str) -> Rule:
  """`'t5x(min_capacity=2)'` -> a rule; a ValueError lists the names."""
  return registry.call(spec, RULES, 'capacity rule')


def _alike(rows: Callable[[float, int, float, int], int]) -> Rule:
  """The rule that counts all experts alike; local ones cost no rows."""
  return lambda factor, T, K, E, Z=0: (rows(factor, T, K, E + Z), None)


def per_choice(min_capacity: int = 1) -> Rule:
  """ceil(factor T K / E): 1.0 seats balanced routing exactly, for any K.

  GShard's 2 T / E for its top-2 (Lepikhin et al. 2020, arXiv:2006.16668,
  section 2.2) is factor 1.
  """
  _check(min_capacity)
  return _alike(
    lambda factor, T, K, E: max(
      min_capacity, math.ceil(_exact(factor) * T * _exact(K) / E)
    )
  )


def paper(min_capacity: int = 1) -> Rule:
  """ceil(factor T / E), without K (Switch Transformer, equation 3; ST-MoE).

  Top-2 at factor 1.25 seats at most 62.5 % of the assignments. The papers
  leave the rounding open; here it is up.
  """
  _check(min_capacity)
  return _alike(
    lambda factor, T, K, E: max(min_capacity, math.ceil(_exact(factor) * T / E))
  )


def mesh_tensorflow(min_capacity: int = 4) -> Rule:
  """int(T factor / E), at most T and then at least `min_capacity`.

  Also st-moe-pytorch's, whose groups are single sequences.
  """
  _check(min_capacity)
  return _alike(
    lambda factor, T, K, E: max(min_capacity, min(T, int(T * factor / E)))
  )


def t5x(min_capacity: int = 4) -> Rule:
  """round(factor T / E), halves to even, at least `min_capacity` (flaxformer).

  T5X sets min_capacity=2 for Switch-XXL and Switch-C.
  """
  _check(min_capacity)
  return _alike(
    lambda factor, T, K, E: max(min_capacity, round(factor * T / E))
  )


def vmoe(multiple_of: int = 4, rounding: str = 'ceil') -> Rule:
  """factor T K / E, rounded, then up to a multiple (V-MoE's code).

  Args:
    multiple_of: of the rows.
    rounding: 'ceil', or 'round' (halves to even).
  """
  _check(multiple_of, 'multiple_of')
  table = {'ceil': math.ceil, 'round': round}
  if rounding not in table:
    raise UserError(f'vmoe: rounding={rounding!r}; valid: {", ".join(table)}')

  return _alike(
    lambda factor, T, K, E: _up(
      table[rounding](factor * T * K / E), multiple_of
    )
  )


def lingvo(min_capacity: int = 0) -> Rule:
  """int(factor T / E) up to a multiple of 4, at least `min_capacity`."""
  return _alike(
    lambda factor, T, K, E: max(min_capacity, _up(int(factor * T / E), 4))
  )


def fixed(rows: int = 64) -> Rule:
  """The same rows for any factor: Hugging Face's `expert_capacity`.

  Theirs is per sequence: with `group_size` equal to the sequence length.
  """
  _check(rows, 'rows')
  return _alike(lambda factor, T, K, E: rows)


def moe_plus_plus(tau: float = 0.75) -> Rule:
  """tau factor T K / (tau E + Z), and factor T K / (tau E + Z) for local ones.

  Jin et al., "MoE++", 2024, arXiv:2410.07348, equation 8, whose T is read as
  the T K assignments: taken literally, top-2 could not seat half of them.
  """
  if not tau > 0:
    raise UserError(f'moe_plus_plus: tau={tau} must be positive')

  def rule(factor, T, K, E, Z=0):
    share = _exact(factor) * T * _exact(K) / (_exact(tau) * E + Z)
    return math.ceil(_exact(tau) * share), math.ceil(share)

  return rule


RULES = {
  f.__name__: f
  for f in (
    per_choice,
    paper,
    mesh_tensorflow,
    t5x,
    vmoe,
    lingvo,
    fixed,
    moe_plus_plus,
  )
}


def _exact(x: float) -> fractions.Fraction:
  return fractions.Fraction(str(x))


def _up(n: int, multiple: int) -> int:
  return -(-n // multiple) * multiple


def _check(value: int, name: str = 'min_capacity') -> None:
  if not isinstance(value, int) or value < 1:
    raise UserError(
      f'capacity rule: {name}={value!r} must be a whole number from 1'
    )
