"""Kills a run at random moments, damages what it saved, and compares the end.

A twin runs undisturbed. What the disturbed run comes to (every logged number,
the arrays of its last checkpoint, its summary) is the twin's, to the bit; what
the clock says is not compared. A run that ends before all kills are spent is
followed by another one.
"""

import dataclasses
import os
import pathlib
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from moe_jax import json_files
from moe_jax.errors import UserError
from moe_jax.runs import checkpoint, meta, writers

# Neither time nor speed is the same twice.
CLOCK = frozenset(
  """seconds tokens_per_second eval/seconds step_seconds mfu
  matmul_flops_per_second""".split()
)
# On what a run was at its end, which another mesh is there for.
_PLACE = frozenset({'devices', 'mesh'})
_SHOWN = 20  # mismatches
# Shares of the kills that are SIGTERM, and that leave damage behind.
_TERM, _DAMAGE = 0.3, 0.25
# One that died before Python heard the signal; one that was told in time.
_CODES = {
  signal.SIGKILL: (-signal.SIGKILL,),
  signal.SIGTERM: (143, -signal.SIGTERM),
}


@dataclasses.dataclass
class Chaos:
  """Kills to come, and what became of those that were.

  Attributes:
    command: (workdir, Random) -> command line of a start.
    root: where everything is written.
    seed: of all that is random here.
    tolerance: relative, of numbers; 0 is to the bit.
    say: is given a line at a time.
    kills, survived: so far; a kill is survived where its run came to the end
      that its twin came to.
    mismatches: what differed, or ended in another way than it should.
  """

  command: Callable[[pathlib.Path, random.Random], Sequence[str]]
  root: pathlib.Path
  seed: int = 0
  tolerance: float = 0.0
  say: Callable[[str], None] = lambda line: print(line, flush=True)
  kills: int = 0
  survived: int = 0
  mismatches: list[str] = dataclasses.field(default_factory=list)

  def run(self, kills: int) -> dict[str, Any]:
    """Does it; returns the three numbers, to be printed."""
    self._random = random.Random(self.seed)
    twin = self.root / 'twin'
    began = time.monotonic()
    code = self._start(twin).wait()
    self._seconds = time.monotonic() - began
    if code:
      self.mismatches.append(f'the twin ended with {code}: {self._tail(twin)}')
    while self.kills < kills and not self.mismatches:
      before = self.kills
      run = self._disturbed(kills)
      self.mismatches += differences(twin, run, self.tolerance)
      if not self.mismatches:
        self.survived += self.kills - before
    return {
      'kills': self.kills,
      'survived': self.survived,
      'mismatches': _short(self.mismatches),
    }

  def _disturbed(self, kills: int) -> pathlib.Path:
    """A run, killed until no kills are left, or until it is over."""
    found = [p.name for p in self.root.glob('run_*') if p.is_dir()]
    workdir = self.root / f'run_{len(found)}'
    while not self.mismatches:
      process = self._start(workdir)
      number = None
      if self.kills < kills:
        number = self._kill(process, workdir)
      code = process.wait()
      if code == 0:
        break
      if code not in _CODES.get(number, ()):
        why = 'undisturbed' if number is None else number.name
        self.mismatches.append(f'{why}: exit {code}: {self._tail(workdir)}')
        break
      self.kills += 1
      step = writers.last_step(workdir)
      self.say(f'{self.kills}/{kills} {number.name} after step {step}')
      if self._random.random() < _DAMAGE:
        self._damage(workdir)
    return workdir

  def _kill(self, process, workdir: pathlib.Path) -> signal.Signals:
    """Waits for a moment, of the start or of the steps, and sends a signal."""
    term = self._random.random() < _TERM
    number = signal.SIGTERM if term else signal.SIGKILL
    end = time.monotonic() + self._random.uniform(0, self._seconds)
    if self._random.random() < 0.7:
      # While it trains, which is the smaller part of a short run.
      first = _size(workdir)
      while process.poll() is None and _size(workdir) == first:
        time.sleep(0.01)
      rest = 0.3 * self._seconds
      end = time.monotonic() + self._random.uniform(0, rest)
    while process.poll() is None and time.monotonic() < end:
      time.sleep(0.01)
    if process.poll() is None:
      process.send_signal(number)
    return number

  def _damage(self, workdir: pathlib.Path) -> None:
    """Flips a bit of the newest checkpoint, or cuts it.

    Not of the only one; nor of a run that was killed when it was over, whose
    next start has nothing to do and reads no checkpoint.
    """
    steps = checkpoint.steps(workdir / 'checkpoints')
    if len(steps) < 2 or (workdir / 'summary.json').exists():
      return
    newest = workdir / 'checkpoints' / str(steps[-1])
    files = sorted(p for p in newest.rglob('*') if p.is_file())
    path = self._random.choice([p for p in files if p.stat().st_size])
    content = bytearray(path.read_bytes())
    at = self._random.randrange(len(content))
    if self._random.random() < 0.5:
      content[at] ^= 1 << self._random.randrange(8)
      what = f'a bit of byte {at} flipped'
    else:
      del content[at:]
      what = f'cut after {at} bytes'
    path.write_bytes(content)
    self.say(f'  {path.relative_to(workdir)}: {what}')

  def _start(self, workdir: pathlib.Path) -> subprocess.Popen:
    workdir.parent.mkdir(parents=True, exist_ok=True)
    with open(f'{workdir}.log', 'a') as log:
      call = self.command(workdir, self._random)
      return subprocess.Popen(call, stdout=log, stderr=log)

  def _tail(self, workdir: pathlib.Path) -> str:
    text = pathlib.Path(f'{workdir}.log').read_text(errors='replace')
    return ' '.join(text.splitlines()[-3:])


def differences(
  twin: str | os.PathLike, run: str | os.PathLike, tolerance: float = 0.0
) -> list[str]:
  """In what two finished runs differ: lines, summary, last arrays.

  Args:
    twin, run: workdirs.
    tolerance: relative, of numbers; 0 is to the bit.
  """
  twin, run = pathlib.Path(twin), pathlib.Path(run)
  try:
    lines = [_lines(p) for p in (twin, run)]
    found = []
    if len(lines[0]) != len(lines[1]):
      found.append(f'{len(lines[0])} lines, {len(lines[1])}')
    for a, b in zip(*lines):
      found += _compare(a, b, f'step {a.get("step")}: ', tolerance)
    summaries = [json_files.read(p / 'summary.json') for p in (twin, run)]
    if tolerance:
      for s in summaries:
        s |= dict.fromkeys(_PLACE & s.keys())
    found += _compare(*summaries, 'summary: ', tolerance)
    arrays = [_arrays(p) for p in (twin, run)]
    return found + _compare(*arrays, 'arrays: ', tolerance)
  except (OSError, ValueError) as e:
    return [f'{run.name}: {type(e).__name__}: {e}']


def write_text(folder: pathlib.Path) -> None:
  """Two small domains, the same at each start."""
  folder.mkdir(parents=True, exist_ok=True)
  draw = random.Random(0)
  words = 'the router sends each token to one expert and it answers'.split()
  for domain in ('a', 'b'):
    documents = (' '.join(draw.choices(words, k=30)) for _ in range(80))
    (folder / f'{domain}.txt').write_text('\n\n'.join(documents))
    words.reverse()


def _short(found: list[str]) -> list[str]:
  """The first of them: runs that part differ in every line from there on."""
  more = len(found) - _SHOWN
  return found if more <= 0 else [*found[:_SHOWN], f'and {more} more']


def _lines(workdir: pathlib.Path) -> list[dict[str, Any]]:
  path = workdir / writers.METRICS
  lines = json_files.lines(path)
  return [json_files.parse_object(line, str(path)) for line in lines]


def _arrays(workdir: pathlib.Path) -> dict[str, np.ndarray]:
  """The last checkpoint's, without knowing what they are of."""
  directory = workdir / 'checkpoints'
  newest = max(checkpoint.steps(directory), default=None)
  if newest is None:
    raise UserError(f'{directory} holds no checkpoint')
  leaves = meta.read(directory / str(newest))['leaves']
  where = SingleDeviceSharding(jax.devices()[0])
  wanted = {
    name: jax.ShapeDtypeStruct(shape, dtype, sharding=where)
    for name, (shape, dtype) in leaves.items()
  }
  with checkpoint.Checkpointer(directory, keep=1) as saved:
    return jax.device_get(saved.restore(wanted, newest)[0])


def _compare(a: dict, b: dict, where: str, tolerance: float) -> list[str]:
  only = sorted((a.keys() ^ b.keys()) - CLOCK)
  found = [f'{where}{k} is in one only' for k in only]
  for k in sorted((a.keys() & b.keys()) - CLOCK):
    if not _same(a[k], b[k], tolerance):
      found.append(f'{where}{k} differs')
  return found


def _same(a: Any, b: Any, tolerance: float) -> bool:
  if isinstance(a, dict) and isinstance(b, dict):
    return not _compare(a, b, '', tolerance)
  if isinstance(a, np.ndarray):
    a, b = np.asarray(a), np.asarray(b)
    if not tolerance:
      return a.tobytes() == b.tobytes() and a.dtype == b.dtype
    close = {'rtol': tolerance, 'atol': tolerance}
    return np.allclose(np.float64(a), np.float64(b), **close)
  if isinstance(a, list) and isinstance(b, list):
    pairs = zip(a, b)
    return len(a) == len(b) and all(_same(x, y, tolerance) for x, y in pairs)
  if tolerance and isinstance(a, float) and isinstance(b, int | float):
    return bool(np.isclose(a, b, rtol=tolerance, atol=tolerance))
  return type(a) is type(b) and a == b


def _size(workdir: pathlib.Path) -> int:
  path = workdir / writers.METRICS
  return path.stat().st_size if path.exists() else 0
