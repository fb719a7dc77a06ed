"""Random small configs: refused in one line, or they train, and lose nothing.

`MOE_JAX_FUZZ=5000 pytest -n 0 -m '' tests/test_fuzz_configs.py` traces as many
and trains one in sixteen; here it is few, as a step costs some seconds to
compile and one to trace, and CI has more.
"""

import os

import hypothesis
import hypothesis.strategies as st
import jax
import pytest
from absl import logging

from tests import fuzz_configs

LONG = int(os.environ.get('MOE_JAX_FUZZ', '0'))
# Traced, trained.
COUNTS = [
  pytest.param(8, 2, id='few'),
  pytest.param(LONG or 60, LONG // 16 or 10, id='many', marks=pytest.mark.slow),
]


def examples(count, *strategies):
  """The same ones each time; none is made smaller, which would take hours."""
  settings = hypothesis.settings(
    max_examples=count,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[hypothesis.Phase.generate],
    suppress_health_check=list(hypothesis.HealthCheck),
  )
  return lambda test: settings(hypothesis.given(*strategies)(test))


@pytest.fixture(autouse=True)
def quiet():
  before = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  yield
  logging.set_verbosity(before)


@pytest.mark.parametrize(('traced', 'trained'), COUNTS)
def test_any_config(traced, trained):
  found = {True: 0, False: 0}

  @examples(traced, st.one_of(fuzz_configs.sane(), fuzz_configs.wild()))
  def trace(flat):
    found[fuzz_configs.traced(flat)] += 1
    if sum(found.values()) % 50 == 0:
      jax.clear_caches()  # programs of hundreds of models are gigabytes

  @examples(trained, fuzz_configs.sane(), st.data())
  def train(flat, data):
    draw = lambda *shape: data.draw(fuzz_configs.masks(*shape))
    found[fuzz_configs.trained(flat, draw, 0)] += 1

  trace()
  train()
  # Else nothing has been looked at.
  assert found[True] > (traced + trained) / 8, found
