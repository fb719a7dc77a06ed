"""Experts that give nothing."""

import numpy as np

from tests.methods import Row


def zero(params, j, x_D, **_):
  return np.zeros_like(x_D)


ROWS = (Row('zero()', '2406.13233', zero),)
ERRORS = {'zero(count=0)': 'zero: count=0 must be a whole number'}
