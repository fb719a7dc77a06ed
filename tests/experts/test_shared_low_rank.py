"""Experts of one shared FFN and low-rank differences of their own."""

import numpy as np
import pytest

from moe_jax import registry
from tests.lazy import jax
from tests.methods import Row


def shared_low_rank(params, e, x_D, **_):
  """One number at a time; ReLU."""

  def layer(x_A, w, b):
    y_B = list(params[b]) if b in params else [0.0] * params[w].shape[1]
    down_AK, up_KB = params[f'{w}_a'][e], params[f'{w}_b'][e]
    for n in range(len(y_B)):
      for a, x in enumerate(x_A):
        y_B[n] += x * params[w][a, n]
        y_B[n] += sum(x * d * u for d, u in zip(down_AK[a], up_KB[:, n]))
    return y_B

  hidden = [max(h, 0.0) for h in layer(x_D, 'wi', 'bi')]
  return np.array(layer(hidden, 'wo', 'bo'))


ROWS = (
  Row('shared_low_rank(d_ff=12, rank=3)', '2502.17298', shared_low_rank),
  Row(
    'shared_low_rank(d_ff=12, rank=2, bias=True)',
    '2502.17298',
    shared_low_rank,
  ),
)


def test_all_experts_start_as_one_ffn():
  """B is zero: each is the `mlp` of the shared matrices. (The paper's split,
  and LoRA's start.)"""
  from moe_jax.dispatch import base as dispatching

  kind = registry.build('experts', 'shared_low_rank(d_ff=12, bias=True)')
  w = kind.init(jax.random.key(0), 4, 8)
  assert not w['wi_b'].any() and not w['wo_b'].any()
  plain = {k: np.tile(w[k], (4, *[1] * w[k].ndim)) for k in ('wi', 'wo')}
  x_ERD = np.random.default_rng(0).normal(size=(4, 5, 8)).astype(np.float32)
  ops = dispatching.buffer_ops(5, (), E=4)
  want = registry.build('experts', 'mlp(d_ff=12)')(plain, x_ERD, ops)
  np.testing.assert_allclose(kind(w, x_ERD, ops), want, atol=1e-6)


def test_experts_differ_by_their_rank():
  kind = registry.build('experts', 'shared_low_rank(d_ff=12, rank=3)')
  w = kind.init(jax.random.key(0), 2, 8)
  draw = np.random.default_rng(1)
  for name in ('wi', 'wo'):
    up = draw.normal(size=w[f'{name}_b'].shape)
    a, b = w[f'{name}_a'] @ up
    assert np.linalg.matrix_rank(a) == np.linalg.matrix_rank(b) == 3
    assert np.linalg.matrix_rank(a - b, tol=1e-4) == 6
  # 2 x 8 x 12 once, and 2 x 3 x (8 + 12) for each expert.
  assert sum(v.size for v in w.values()) == 192 + 2 * 120


def test_errors():
  with pytest.raises(ValueError, match='rank=0 must be a whole number'):
    registry.build('experts', 'shared_low_rank(rank=0)', d_ff=4)
