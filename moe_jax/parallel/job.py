"""Processes of one job on one machine: started, watched, ended together.

Where a process dies, the others cannot go on: some end by themselves, some only
when no sign of life has come for a while, and then in C++, with a page each.
Here that page is held back, and one line says who died. Knows nothing of JAX.
"""

import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TextIO

# The first line of what JAX's service says when it gives up.
_PAGE = re.compile(
  r'^[WEF]\d{4} .*(coordination_service|preemption_sync_manager|client\.h:)'
)
_PEER = re.compile(r'heartbeats\):\s*(\d+)|Task (\d+) heartbeat timeout')
_PARENT = 'MOE_JAX_JOB_PROCESS'
# What the others have to end by themselves.
_GRACE = 10.0


class Job:
  """Processes that end together.

  Attributes:
    processes: subprocess.Popen of each.
  """

  def __init__(
    self, calls: Sequence[Sequence[str]], stderr: TextIO = sys.stderr
  ):
    """Starts a process for each command line."""
    self._stderr = stderr
    self._told = 0
    self._pages = ['' for _ in calls]
    self.processes = [
      subprocess.Popen(
        call,
        stderr=subprocess.PIPE,
        text=True,
        errors='replace',
        # A terminal's Ctrl-C would come twice: from it, and from here.
        start_new_session=True,
        env=os.environ | {_PARENT: str(os.getpid())},
      )
      for call in calls
    ]
    self._readers = [
      threading.Thread(target=self._read, args=(i,), daemon=True)
      for i in range(len(calls))
    ]
    for reader in self._readers:
      reader.start()

  def wait(self, last: Callable[[], str]) -> int:
    """Waits for all, and ends the others where one fails.

    Args:
      last: what to say of the last checkpoint.

    Returns:
      Their exit code; 1 where they differ, or one died. 128 + n where they
      were told n, and one ended of it that had no ear for it, at its start or
      its end.
    """
    while all(p.poll() in (None, 0) for p in self.processes):
      if all(p.returncode == 0 for p in self.processes):
        break
      time.sleep(0.05)
    end = time.monotonic() + _GRACE
    while time.monotonic() < end and self._first() is not None:
      if all(p.poll() is not None for p in self.processes):
        break
      time.sleep(0.05)
    # The first that failed: what ends from here on ends by this hand.
    codes = [p.poll() for p in self.processes]
    self.kill()
    for reader in self._readers:
      reader.join(1)
    told = {0, 1, 130, 143}
    if set(codes) <= {130, 143} or (len(set(codes)) == 1 and codes[0] in told):
      return min(codes)  # each has said why
    if self._told and -self._told in codes:
      return 128 + self._told
    found = self._dead(codes)
    print(f'error: {found}; {last()}', file=self._stderr, flush=True)
    return 1

  def tell(self, number: int) -> None:
    """Sends a signal to all."""
    self._told = number
    for p in self.processes:
      if p.poll() is None:
        p.send_signal(number)

  def kill(self) -> None:
    """Ends all at once."""
    for p in self.processes:
      p.kill()
    for p in self.processes:
      p.wait()

  def _first(self) -> int | None:
    bad = (i for i, p in enumerate(self.processes) if p.poll())
    return next(bad, None)

  def _dead(self, codes: Sequence[int | None]) -> str:
    """Who is to blame, of those that ended and those that hang."""
    of = f'of {len(codes)}' if len(codes) > 1 else 'of this machine'
    for i, code in enumerate(codes):
      if code is not None and code < 0 and code != -signal.SIGABRT:
        name = signal.Signals(-code).name
        return f'process {i} {of} was killed by {name}'
      if code is not None and code > 0 and None in codes:
        return f'process {i} {of} ended with exit code {code}'
    pages = '\n'.join(self._pages)
    if 'RegisterTask' in pages:  # of who has come
      return 'not all processes of the job have come'
    peer = _PEER.search(pages)
    if peer:
      return f'process {peer[1] or peer[2]} gives no sign of life'
    if None in codes:
      return f'process {codes.index(None)} {of} hangs'
    failed = (f'{i} with {code}' for i, code in enumerate(codes) if code)
    return f'exit codes {of}: {", ".join(failed)}'

  def _read(self, index: int) -> None:
    """What a process says, but for the page at its end."""
    with self.processes[index].stderr as lines:
      for line in lines:
        if self._pages[index] or _PAGE.match(line):
          self._pages[index] += line
        else:
          print(line, end='', file=self._stderr, flush=True)


def calls(main: Sequence[str], count: int, port: int = 0) -> list[list[str]]:
  """Command lines of the processes of a job on this machine.

  Args:
    main: module and flags.
    count: of the processes; 0 is one that knows of the others by its flags.
    port: of process 0; 0 is any that is free.
  """
  call = [sys.executable, '-m', *main]
  if not count:
    return [call]
  address = f'localhost:{port or _free()}'
  job = [f'--coordinator_address={address}', f'--num_processes={count}']
  return [[*call, *job, f'--process_id={i}'] for i in range(count)]


def end_with_parent() -> None:
  """In a process of a job: SIGKILL of whoever started it ends this one, too."""
  parent = int(os.environ.get(_PARENT, 0))
  if not parent:
    return
  if sys.platform == 'linux' and hasattr(libc := ctypes.CDLL(None), 'prctl'):
    set_death_signal = 1
    libc.prctl(set_death_signal, signal.SIGKILL)
  if os.getppid() != parent:  # it was too late
    os._exit(1)


def last_checkpoint(main: Sequence[str]) -> str:
  """'last checkpoint: step 20 in PATH', by the flags of a main."""
  found = [re.match(r'--?workdir=(.*)', flag) for flag in main]
  workdir = next((m[1] for m in found if m), '')
  where = os.path.join(workdir, 'checkpoints')
  steps = os.listdir(where) if workdir and os.path.isdir(where) else []
  newest = max((int(n) for n in steps if n.isdecimal()), default=None)
  kept = 'none' if newest is None else f'step {newest}'
  return f'last checkpoint: {kept} in {where}; the same command goes on'


def _free() -> int:
  with socket.socket() as s:
    s.bind(('localhost', 0))
    return s.getsockname()[1]
