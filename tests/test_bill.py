"""The bill of the tests: what it counts, and that a breach fails a session."""

import subprocess
import sys

import pytest

from tests import bill

pytest_plugins = ('pytester',)


def made_up(**fields):
  """As dear as may be."""
  tests = {'tests/test_a.py::one': 8.0, 'tests/test_a.py::two': 1.0}
  tests['tests/test_b.py::one'] = 8.0
  processes = {'gw0': (700.0, 2.5), 'gw1': (440.0, 2.5), 'main': (10.0, 0.2)}
  return bill.Bill(**({'tests': tests, 'processes': processes} | fields))


@pytest.mark.parametrize(
  ('fields', 'fault'),
  [
    ({}, None),
    (
      {'processes': {'gw0': (1150.6, 2.5)}},
      '1151 CPU-seconds, the limit is 1150',
    ),
    ({'processes': {'gw0': (1, 2.6)}}, 'gw0: 2.6 GB, the limit is 2.5'),
    ({'tests': {'a::b': 8.1}}, 'a::b: 8.1 CPU-seconds, the limit is 8.0'),
  ],
)
def test_limits(fields, fault):
  assert made_up(**fields).faults() == ([fault] if fault else [])


def test_slower_machine_has_more_time_and_no_more_memory():
  twice = [bill.CALIBRATION, 3 * bill.CALIBRATION]
  dear = {'tests': {'a::b': 16.1}, 'processes': {'gw0': (2301.0, 2.6)}}
  assert made_up(calibration=twice, **dear).faults() == [
    '2301 CPU-seconds, the limit is 2300',
    'gw0: 2.6 GB, the limit is 2.5',
    'a::b: 16.1 CPU-seconds, the limit is 16.0',
  ]
  dear = {'tests': {'a::b': 15.9}, 'processes': {'gw0': (2299.0, 2.5)}}
  assert not made_up(calibration=twice, **dear).faults()
  # A faster one, or a lucky calibration, takes nothing away.
  assert not made_up(calibration=[bill.CALIBRATION / 2]).faults()


def test_table():
  lines = made_up().table()
  assert lines[0].split()[:2] == ['1150.0', 'CPU-seconds,']
  assert '1133.0 of them outside of 3 tests' in lines[0]
  assert [line.split()[0] for line in lines[1:4]] == ['700.0', '440.0', '10.0']
  assert lines[4:6] == [
    '     9.0 tests/test_a.py, 2 tests',
    '     8.0 tests/test_b.py, 1 tests',
  ]
  assert lines[6].split() == ['8.0', 'tests/test_a.py::one']


def burn(seconds):
  start = bill.cpu()
  while bill.cpu() - start < seconds:
    pass


def test_counts_threads_and_programs():
  start = bill.cpu()
  burn(0.1)
  own = bill.cpu(children=False)
  code = 'import time\nwhile time.process_time() < 0.2: pass'
  subprocess.run([sys.executable, '-S', '-c', code], check=True)
  assert 0.3 <= bill.cpu() - start < 2
  assert bill.cpu(children=False) - own < 0.1
  assert 0.05 < bill.peak() < 50


SESSION = """
import pytest
from tests.test_bill import burn

@pytest.fixture
def dear():
  burn(0.2)
  yield
  burn(0.2)

def test_dear(dear):
  burn(0.2)

def test_cheap():
  pass
"""


@pytest.mark.parametrize('gate', [True, False])
def test_a_breach_fails_the_session(pytester, monkeypatch, gate):
  """Setup, call and teardown are a test's; without the gate it is printed.

  The machine's speed is looked at before the first test, and now and then.
  """
  monkeypatch.setattr(bill, 'TEST', 0.5)
  monkeypatch.setattr(bill, 'EVERY', 0.3)
  monkeypatch.setattr(bill, 'calibrate', lambda: bill.CALIBRATION)
  plugin = bill.Plugin(gate)
  path = pytester.makepyfile(SESSION)
  args = ('-p', 'no:xdist', '-p', 'no:cacheprovider', path)
  run = pytester.inline_run(*args, plugins=[plugin])
  dear, cheap = plugin.bill.tests.values()
  assert 0.6 <= dear < 2 and cheap < 0.5
  assert plugin.bill.total > 0.6
  failed = [line for line in plugin.lines if line.startswith('FAILED')]
  assert run.ret == (pytest.ExitCode.TESTS_FAILED if gate else 0)
  assert len(failed) == gate
  assert not gate or 'test_dear' in failed[0]
  assert plugin.bill.calibration == [bill.CALIBRATION] * 2 * gate


def test_environment_sets_the_gate(monkeypatch):
  monkeypatch.delenv('MOE_JAX_GATE', raising=False)
  assert not bill.Plugin().gate
  monkeypatch.setenv('MOE_JAX_GATE', '1')
  assert bill.Plugin().gate
