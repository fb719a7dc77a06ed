"""What the tests cost: summed by file, printed, and held to limits.

CPU-seconds, not seconds: they hold however many processes share a core. Those
of a test are its setup, call and teardown with all threads and the programs
that it waited for. `MOE_JAX_GATE=1` makes a breach fail the session, as CI
does; a laptop only prints.
"""

import collections
import dataclasses
import os
import resource
import sys

import jax
import jax.numpy as jnp
import pytest

# CPU-seconds of all processes, of one test, and the peak of one process in GB.
TOTAL, TEST, MEMORY = 1150, 8, 2.5
# CPU-seconds of `calibrate` where the limits were set, alone. A slower one has
# proportionally more.
CALIBRATION = 1.3
# As conftest.py sets them, and so that it may change.
OPTIONS = {
  'xla_backend_optimization_level': 0,
  'xla_llvm_disable_expensive_passes': True,
}
# XLA's older way of emitting fusions, which takes half the time; later versions
# lack it, and refuse a flag that they do not know.
OLD_FUSIONS = jax.__version_info__ < (0, 11)
if OLD_FUSIONS:
  OPTIONS['xla_cpu_use_fusion_emitters'] = False
# CPU-seconds of a process from one calibration to the next: whoever shares the
# core comes and goes.
EVERY = 150
ROOMS, TESTS = 15, 10  # lines printed


@dataclasses.dataclass
class Bill:
  """What a session cost.

  Attributes:
    tests: CPU-seconds by test id.
    processes: (CPU-seconds, peak GB) by name of a process, its imports and
      collection included.
    calibration: CPU-seconds that `calibrate` took, in each process that ran.
  """

  tests: dict = dataclasses.field(default_factory=collections.Counter)
  processes: dict = dataclasses.field(default_factory=dict)
  calibration: list = dataclasses.field(default_factory=list)

  @property
  def scale(self) -> float:
    """How much slower this machine is than that of the limits; at least 1."""
    taken = self.calibration or [CALIBRATION]
    return max(1.0, sum(taken) / len(taken) / CALIBRATION)

  @property
  def total(self) -> float:
    return sum(cpu for cpu, _ in self.processes.values())

  def faults(self) -> list[str]:
    """A line for each limit that was passed."""
    scale, lines = self.scale, []
    if self.total > TOTAL * scale:
      lines.append(
        f'{self.total:.0f} CPU-seconds, the limit is {TOTAL * scale:.0f}'
      )
    for name, (_, peak) in sorted(self.processes.items()):
      if peak > MEMORY:
        lines.append(f'{name}: {peak:.1f} GB, the limit is {MEMORY}')
    for name, cpu in sorted(self.tests.items()):
      if cpu > TEST * scale:
        lines.append(
          f'{name}: {cpu:.1f} CPU-seconds, the limit is {TEST * scale:.1f}'
        )
    return lines

  def table(self) -> list[str]:
    """Total, processes, the dearest files and tests."""
    rooms, count = collections.Counter(), collections.Counter()
    for name, cpu in self.tests.items():
      rooms[name.split('::')[0]] += cpu
      count[name.split('::')[0]] += 1
    tests = sum(self.tests.values())
    lines = [
      f'{self.total:8.1f} CPU-seconds, {self.total - tests:.1f} of them outside'
      f' of {len(self.tests)} tests; machine slower by {self.scale:.2f}'
    ]
    for name, (cpu, peak) in sorted(self.processes.items()):
      lines.append(f'{cpu:8.1f} {name}, {peak:.2f} GB')
    for name, cpu in rooms.most_common(ROOMS):
      lines.append(f'{cpu:8.1f} {name}, {count[name]} tests')
    for name, cpu in sorted(self.tests.items(), key=lambda t: -t[1])[:TESTS]:
      lines.append(f'{cpu:8.1f} {name}')
    return lines


def cpu(children: bool = True) -> float:
  """CPU-seconds of this process so far, and of those it has waited for."""
  who = [resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN][: 1 + children]
  used = [resource.getrusage(w) for w in who]
  return sum(u.ru_utime + u.ru_stime for u in used)


def peak() -> float:
  """The most memory that this process held, GB."""
  unit = 1 if sys.platform == 'darwin' else 1024
  return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9


def calibrate() -> float:
  """CPU-seconds of a fixed compilation and run, like those of the tests."""

  def loss(w, x):
    for i in range(24):
      x = jnp.where(x > i, jnp.sort(x @ w, axis=-1), jnp.tanh(x))
    return x.sum()

  start = cpu()
  w = jnp.ones((16, 16), jnp.float32) / 16
  compiled = jax.jit(jax.grad(loss)).lower(w, w).compile(OPTIONS)
  for _ in range(200):
    w = w - 1e-3 * compiled(w, w)
  jax.block_until_ready(w)
  return cpu() - start


class Plugin:
  """Gathers a session's bill over its processes; pytest's hooks."""

  def __init__(self, gate: bool | None = None):
    self.bill = Bill()
    self.gate = os.environ.get('MOE_JAX_GATE') == '1' if gate is None else gate
    self.mark = cpu()
    self.next = 0.0
    self.lines = []

  @pytest.hookimpl(wrapper=True)
  def pytest_runtest_protocol(self):
    if self.gate and cpu() >= self.next:
      self.bill.calibration.append(calibrate())
      self.next = cpu() + EVERY
    self.mark = cpu()
    return (yield)

  @pytest.hookimpl(wrapper=True)
  def pytest_runtest_makereport(self):
    report = yield
    now = cpu()
    report.cpu, self.mark = now - self.mark, now
    return report

  def pytest_runtest_logreport(self, report):
    # A process that crashed has sent none.
    self.bill.tests[report.nodeid] += getattr(report, 'cpu', 0.0)

  @pytest.hookimpl(optionalhook=True)
  def pytest_testnodedown(self, node):
    """xdist's: a process has ended, and what it left."""
    name, left = node.gateway.id, getattr(node, 'workeroutput', {})
    if 'process' in left:
      self.bill.processes[name] = left['process']
      self.bill.calibration.extend(left['calibration'])

  @pytest.hookimpl(trylast=True)
  def pytest_sessionfinish(self, session):
    worker = getattr(session.config, 'workeroutput', None)
    if worker is not None:
      worker['process'] = cpu(), peak()
      worker['calibration'] = self.bill.calibration
      return
    # Processes that xdist has started are counted where they end.
    self.bill.processes['main'] = cpu(not self.bill.processes), peak()
    self.lines = self.bill.table()
    if self.gate:
      faults = self.bill.faults()
      self.lines += [f'FAILED {line}' for line in faults]
      if faults and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED

  def pytest_terminal_summary(self, terminalreporter):
    terminalreporter.section('bill')
    for line in self.lines:
      terminalreporter.line(line)
