"""The dynamic loss of top-p routing."""

import math

import numpy as np

from tests.balances import E
from tests.methods import Row
from tests.oracles import entropy, real_tokens


def entropy_loss(choices, masks):
  return np.mean([entropy(c.probs[t]) for c, t in real_tokens(choices, masks)])


ROWS = (
  Row('entropy_loss()', '2403.07652', entropy_loss, balanced=(math.log(E), 0)),
)
ERRORS = {"entropy_loss(scope='batch')": "scope='batch'; valid: global, group"}
