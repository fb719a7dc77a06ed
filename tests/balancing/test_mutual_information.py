"""ModuleFormer's mutual information of token and expert."""

import math

import numpy as np

from tests.balances import E
from tests.methods import Row
from tests.oracles import entropy, real_tokens


def mutual_information(choices, masks):
  """sum P log P less the mean of sum p log p."""
  probs = [c.probs[t] for c, t in real_tokens(choices, masks)]
  return np.mean([entropy(p) for p in probs]) - entropy(np.mean(probs, 0))


_AT = (0, -math.log(E))
ROWS = tuple(
  Row(spec, '2306.04640', mutual_information, balanced=_AT)
  for spec in ('mutual_information()', "mutual_information(scope='sequence')")
)
