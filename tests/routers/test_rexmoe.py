"""ReXMoE: top-k over candidates that are let in step by step."""

import numpy as np
import pytest

from moe_jax import registry
from tests.lazy import jax, jnp, routing
from tests.methods import Row
from tests.oracles import linear, most_probable


def rexmoe(x_TD, params, bias_E, seen, **schedule):
  """After the schedule: all experts are candidates."""
  return most_probable(linear(x_TD, params), bias_E, 2)


def candidates(N, r, start, end, t):
  """N_t of the paper, in whole numbers."""
  if t <= start:
    return N
  if t > end:
    return r * N
  return ((end - start) + (r - 1) * (t - start)) * N // (end - start)


ROWS = (
  Row('rexmoe(start=2, end=8)', '2510.17483', rexmoe, always=True, noisy=True),
)
ERRORS = {
  'rexmoe(layers=3)': 'layers=3 must divide num_experts=8',
  'rexmoe(k=5)': 'k=5 exceeds num_experts=4',
  'rexmoe(start=9, end=9)': 'start=9 must be from 0 to below end=9',
}


def test_candidates():
  """The paper's N = 64, r = 4, 10k to 30k; floors by the printed formula."""
  router = registry.build('routers', 'rexmoe(layers=4)')
  found = {
    t: int(router.candidates(jnp.int32(t), 256))
    for t in (0, 10_000, 15_000, 20_000, 25_000, 30_000, 99_999)
  }
  assert list(found.values()) == [64, 64, 112, 160, 208, 256, 256]
  odd = registry.build('routers', 'rexmoe(layers=3, start=2, end=13)')
  for t in range(16):
    want = candidates(5, 3, 2, 13, t)
    assert int(odd.candidates(jnp.int32(t), 15)) == want, t


def test_candidates_are_let_in():
  """One set for all tokens and groups, another in the next layer."""
  x = np.random.default_rng(4).normal(size=(400, 6))
  spec = 'rexmoe(layers=4, start=2, end=8)'
  used = lambda train=True, **known: set(
    np.asarray(routing.route(spec, x, E=16, train=train, **known).expert_N)
  )
  assert [len(used(step=t)) for t in (0, 4, 8)] == [4, 8, 16]
  assert used(step=0) == used(step=0, key=jax.random.key(9))
  assert used(step=0) != used(step=0, layer_key=jax.random.key(9))
  assert len(used(train=False, key=None, layer_key=None)) == 16
  with pytest.raises(ValueError, match='needs step, which is not known'):
    used()
