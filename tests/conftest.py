"""Eight simulated devices for every test; a test without them must fail.

Tests mostly compile, each program once: XLA's expensive passes are off, and
its newer way of emitting fusions, which saves two thirds of the time.
`MOE_JAX_OPTIMIZED=1` leaves them on; CI does, for most slow tests.
tests/bill.py prints what the session cost.
"""

import functools
import gc
import os

import jax
import pytest

from moe_jax import registry
from moe_jax.kernels import plain
from tests import bill

# Methods and problems that stand in tests, by dotted name.
registry.allow('tests')
jax.config.update('jax_num_cpu_devices', 8)
if os.environ.get('MOE_JAX_OPTIMIZED') != '1':
  jax.config.update('jax_disable_most_optimizations', True)
  if bill.OLD_FUSIONS:
    given = os.environ.get('XLA_FLAGS', '')
    old = '--xla_cpu_use_fusion_emitters=false'
    os.environ['XLA_FLAGS'] = f'{given} {old}'


def _room(path):
  return path.parent if path.parent.name in registry.FAMILIES else path


def pytest_configure(config):
  config.pluginmanager.register(bill.Plugin(), 'bill')


def pytest_sessionstart(session):
  del session
  found = jax.devices()
  assert len(found) == 8 and found[0].platform == 'cpu', found


def pytest_collection_finish():
  """What all tests share stays: to look through it takes 0.2 s a file."""
  gc.collect()
  gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
  """A file's programs go when it ends: those of all files are gigabytes.

  Those of methods are few: a family's go together.
  """
  result = yield
  if nextitem is None or _room(nextitem.path) != _room(item.path):
    jax.clear_caches()
    gc.collect()
  return result


@pytest.fixture(scope='session', autouse=True)
def quick_rate():
  """A run times a matrix product: here a small one, not 3 CPU-seconds."""
  name = 'rate'
  small = functools.partial(getattr(plain, name), size=64)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(plain, name, small)
    yield
