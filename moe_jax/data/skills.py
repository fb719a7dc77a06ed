"""Facts to be remembered and sums to be worked out, in one stream of items.

An item is two symbols of a question and its answer. A fact's question is a key,
two symbols that say nothing by themselves, and its answer a value that was
drawn: it can be known by heart alone. A sum's question is two numbers and its
answer their sum modulo how many there are. Some pairs of numbers are held out,
(x, y) together with (y, x), which would give it away: their answers can be
worked out alone.

Ids are numbers, then values, then the symbols of keys.
"""

import numpy as np

from moe_jax.errors import UserError

# Kinds of items: sums of pairs that training has, and of those held out.
FACT, SEEN, HELD_OUT = KINDS = range(3)


class Skills:
  """The facts and the pairs, fixed by a seed.

  Attributes:
    size: how many ids there are.
    questions: by kind, int32 [n, 2] ids.
    answers: by kind, int32 [n] ids.

  Raises:
    ValueError: a number out of its range; says which.
  """

  def __init__(
    self,
    facts: int,
    symbols: int,
    values: int,
    modulus: int,
    held_out: float,
    seed: int,
  ):
    for name, value, least, most in (
      ('symbols', symbols, 1, None),
      ('facts', facts, 1, symbols**2 if isinstance(symbols, int) else None),
      ('values', values, 2, None),
      ('modulus', modulus, 3, None),
    ):
      fits = isinstance(value, int) and value >= least
      if not fits or (most and value > most):
        upto = f' to {most}, the keys' if most else ' or more'
        raise UserError(
          f'{name}={value!r}: expected a whole number, {least}{upto}'
        )
    rng = np.random.default_rng([seed, 0])
    key_F = rng.choice(symbols**2, facts, replace=False)
    value_F = rng.integers(values, size=facts)
    x_U, y_U = np.triu_indices(modulus)  # pairs without their order
    share = held_out if isinstance(held_out, float) else 0.0
    away = round(share * len(x_U)) if 0 < share < 1 else 0
    if not 0 < away < len(x_U):
      raise UserError(
        f'held_out={held_out!r}: expected more than 0.0 and less than 1.0, one '
        f'or more of the {len(x_U)} pairs of modulus={modulus} on either side'
      )
    held_PP = np.zeros((modulus, modulus), bool)
    chosen = rng.permutation(len(x_U))[:away]
    held_PP[x_U[chosen], y_U[chosen]] = held_PP[y_U[chosen], x_U[chosen]] = True
    pairs = [np.argwhere(~held_PP), np.argwhere(held_PP)]
    key_F2 = np.stack(np.divmod(key_F, symbols), -1) + modulus + values
    self.size = modulus + values + symbols
    self.questions = [v.astype(np.int32) for v in (key_F2, *pairs)]
    sums = [p.sum(-1) % modulus for p in pairs]
    self.answers = [v.astype(np.int32) for v in (modulus + value_F, *sums)]

  def draw(self, rng: np.random.Generator, kind_N: np.ndarray) -> np.ndarray:
    """An item of each of these kinds, drawn evenly. int32 [N, 3]."""
    item_N3 = np.empty((len(kind_N), 3), np.int32)
    for kind in KINDS:
      mine = kind_N == kind
      which = rng.integers(len(self.answers[kind]), size=mine.sum())
      item_N3[mine, :2] = self.questions[kind][which]
      item_N3[mine, 2] = self.answers[kind][which]
    return item_N3
