"""Hash routing: MurmurHash3's finaliser on the ids."""

import numpy as np

from tests.methods import Row
from tests.oracles import Choice


def mix(x):
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
    x = (x ^ (x >> shift)) * factor % 2**32
  return x


def hash_(x_TD, params, bias_E, seen, *, k=1, seed=0):
  """The other choices at hashed distances."""
  E, T = len(bias_E), len(x_TD)
  expert = np.zeros((T, k), int)
  for t, i in enumerate(seen['ids_T']):
    h = mix(int(i) ^ mix(seed))
    expert[t, 0] = h % E
    for j in range(1, k):
      far = 1 + (mix(h ^ 0x9E3779B9) + j - 1) % (E - 1)
      expert[t, j] = (h % E + far) % E
  return Choice(expert, np.full((T, k), 1 / k))


ROWS = (
  Row('hash(k=2, seed=7)', '2106.04426', hash_, always=True, context=True),
)
