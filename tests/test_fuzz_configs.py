"""Random small configs: refused in one line, or they train, and lose nothing.

`MOE_JAX_FUZZ=5000 pytest -n 0 -m slow tests/test_fuzz_configs.py` traces as
many and trains one in sixteen. By default 9 are traced, and one is trained:
to trace a model's step takes a CPU-second, to compile it four.
"""

import os

import hypothesis
import hypothesis.strategies as st
import jax
import pytest
from absl import logging

from tests import fuzz_configs

LONG = int(os.environ.get('MOE_JAX_FUZZ', '0'))
PART = 25  # configs, whose programs are then forgotten: they are gigabytes


def cases(few, in_each, many):
  """(seed, examples): `few` parts by default, `many` examples in CI."""
  size = min(PART, many)
  parts = range(100, 100 + -(-many // size))
  return [
    *(pytest.param(seed, in_each, id=f'{seed}') for seed in range(1, few + 1)),
    *(pytest.param(s, size, marks=pytest.mark.slow, id=f'{s}') for s in parts),
  ]


def examples(seed, count, *strategies):
  """The same ones each time; none is made smaller, which would take hours."""
  settings = hypothesis.settings(
    max_examples=count,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[hypothesis.Phase.generate],
    suppress_health_check=list(hypothesis.HealthCheck),
  )

  def decorate(test):
    return settings(hypothesis.seed(seed)(hypothesis.given(*strategies)(test)))

  return decorate


@pytest.fixture(autouse=True)
def quiet():
  before = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  yield
  logging.set_verbosity(before)
  jax.clear_caches()


@pytest.mark.parametrize(('seed', 'count'), cases(3, 3, LONG or 200))
def test_any_config_is_traced_or_refused(seed, count):
  found = []

  @examples(seed, count, st.one_of(fuzz_configs.sane(), fuzz_configs.wild()))
  def trace(flat):
    found.append(fuzz_configs.traced(flat))

  trace()
  assert any(found)  # else nothing has been looked at


@pytest.mark.parametrize(('seed', 'count'), cases(1, 1, LONG // 16 or 30))
def test_a_step_is_finite_and_loses_nothing(seed, count):
  @examples(seed, count, fuzz_configs.sane(), st.data())
  def train(flat, data):
    draw = lambda *shape: data.draw(fuzz_configs.masks(*shape))
    if count == 1:  # by default
      flat = flat | {'model.num_layers': 1}
    # What is refused makes room for another one.
    hypothesis.assume(fuzz_configs.trained(flat, draw, 0))

  train()
