"""Predictions of experts from ids and pairs of ids, each falling back on less.

Letters: V ids, R pairs, E experts of one layer; the first axis of tables is the
half of the text.
"""

import dataclasses

import numpy as np

# Edges of what is fallen back on that are added to an id's or a pair's.
STRENGTHS = (*(4.0**i for i in range(-2, 7)), 1e9)


def claim(owner_R: np.ndarray, pair_n: np.ndarray) -> np.ndarray:
  """int64 [n], the row of a table that a pair has; -1 where another has it.

  Args:
    owner_R: the pair that has each row, -1 for none. A pair takes the row that
      a hash says, if it is the first to ask.
    pair_n: numbers, in order.
  """
  mixed_n = pair_n.astype(np.uint64)
  for shift, factor in ((33, 0xFF51AFD7ED558CCD), (29, 0xC4CEB9FE1A85EC53)):
    mixed_n = (mixed_n ^ (mixed_n >> np.uint64(shift))) * np.uint64(factor)
  mixed_n ^= mixed_n >> np.uint64(32)
  row_n = (mixed_n % np.uint64(len(owner_R))).astype(np.int64)
  free_n = owner_R[row_n] < 0
  # Of equal rows the last is written: the first pair, seen from behind.
  owner_R[row_n[free_n][::-1]] = pair_n[free_n][::-1]
  return np.where(owner_R[row_n] == pair_n, row_n, -1)


@dataclasses.dataclass
class Tables:
  """Edges of one layer by half of the text.

  Attributes:
    id: int [2, V, E].
    pair: int [2, R, E], of those that are kept; they are in `id`, too.
    id_R: the id of each pair.
  """

  id: np.ndarray
  pair: np.ndarray
  id_R: np.ndarray

  def gains(self) -> tuple[np.ndarray, np.ndarray, float]:
    """Nats an edge that ids save, and pairs beyond them, by half looked at.

    What is fallen back on has the strength that is best on the other half.

    Returns:
      f64 [2] each; and the geometric mean of the strengths of P(e).
    """
    edges_2 = self.id.sum((1, 2))
    none_2E = self.id.sum(1) + 0.5
    none_2E /= none_2E.sum(-1, keepdims=True)
    seen_2V, seen_2R = self.id.sum(-1), self.pair.sum(-1)
    cells = [np.nonzero(t) for t in self.id]
    saved_2S = np.zeros((2, len(STRENGTHS)))
    for look, (x, e) in enumerate(cells):
      fit, n = 1 - look, self.id[look][x, e]
      back = none_2E[fit][e]
      for i, s in enumerate(STRENGTHS):
        p = (self.id[fit][x, e] + s * back) / (seen_2V[fit][x] + s)
        saved_2S[look, i] = (n * np.log(p / back)).sum()
    best_2 = saved_2S[::-1].argmax(-1)
    by_id_2 = saved_2S[[0, 1], best_2]
    saved_2S[:] = 0
    for look, table in enumerate(self.pair):
      fit, (g, e) = 1 - look, np.nonzero(table)
      n, x, s = table[g, e], self.id_R[g], STRENGTHS[best_2[look]]
      back = (self.id[fit][x, e] + s * none_2E[fit][e]) / (seen_2V[fit][x] + s)
      for i, s in enumerate(STRENGTHS):
        p = (self.pair[fit][g, e] + s * back) / (seen_2R[fit][g] + s)
        saved_2S[look, i] = (n * np.log(p / back)).sum()
    by_pair_2 = saved_2S[[0, 1], saved_2S[::-1].argmax(-1)]
    strength = np.exp(np.log(np.array(STRENGTHS)[best_2]).mean())
    return by_id_2 / edges_2, by_pair_2 / edges_2, float(strength)

  def by_load(self, rng: np.random.Generator) -> 'Tables':
    """Tables of as many edges, drawn by P(e); without pairs."""
    load_E = self.id.sum((0, 1))
    drawn = rng.multinomial(self.id.sum(-1), load_E / load_E.sum())
    return Tables(drawn, self.pair[:, :0], self.id_R[:0])

  def by_id(self, strength: float, rng: np.random.Generator) -> 'Tables':
    """Tables of as many edges, drawn by P(e | id)."""
    both_VE = self.id.sum(0)
    p_VE = both_VE + strength * both_VE.sum(0) / both_VE.sum()
    p_VE /= p_VE.sum(-1, keepdims=True)
    pair = rng.multinomial(self.pair.sum(-1), p_VE[self.id_R])
    left_2V = self.id.sum(-1)
    for h in (0, 1):
      np.subtract.at(left_2V[h], self.id_R, self.pair[h].sum(-1))
    drawn = rng.multinomial(left_2V, p_VE)
    for h in (0, 1):
      np.add.at(drawn[h], self.id_R, pair[h])
    return Tables(drawn, pair, self.id_R)

  def known(self) -> float:
    """The share of edges whose pair the other half has, too."""
    seen_2R = self.pair.sum(-1)
    return (seen_2R * (seen_2R[::-1] > 0)).sum() / self.id.sum()
