"""Experts that mix the token with a learned vector."""

import numpy as np

from tests.methods import Row


def constant(params, j, x_D, **_):
  """MoE++, equations 4 and 5."""
  logits = [params['kernel'][j, :, c] @ x_D for c in range(2)]
  top = np.exp(logits)
  return (top[0] * x_D + top[1] * params['vector'][j]) / top.sum()


ROWS = (Row('constant(count=2)', '2410.07348', constant),)
