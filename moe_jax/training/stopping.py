"""Ends a run between two steps, with a checkpoint: on a signal, or in time.

Schedulers send SIGTERM, or what they are told to (Slurm: SIGUSR1), some time
before SIGKILL; a terminal's Ctrl-C is SIGINT. The first one lets the step
finish, or the compilation that it came in; a second one, later than a second
after it, ends the process at once. Several processes agree on the step, by
JAX's own service, which hears SIGTERM in any of them.
"""

import os
import signal
import socket
import threading
import time

import jax
from jax.experimental import multihost_utils

from moe_jax.errors import StoppedError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# A scheduler and a launcher may both tell each process, at about one time.
_SECONDS_OF_ONE = 1.0


class Stop:
  """Whether a run ends after its step; a context manager.

  Signals are heard inside of it, where it is opened by the main thread; those
  that the process was started to ignore stay ignored.
  """

  def __init__(self, max_minutes: float = 0.0):
    """Starts the clock.

    Args:
      max_minutes: the run ends after the step in which they are over; 0 is
        never.
    """
    self._end = time.monotonic() + 60 * max_minutes if max_minutes else None
    self._why, self._code = '', 143
    self._many = jax.process_count() > 1
    self._before: dict[int, object] = {}

  def after(self, step: int) -> bool:
    """Whether this step is the last one; all processes ask after each step."""
    over = self._end is not None and time.monotonic() >= self._end
    if over and not self._why:
      self._why = 'train.max_minutes are over'
      # Those of process 0 count.
      if self._many and jax.process_index() == 0:
        os.kill(os.getpid(), signal.SIGTERM)
    if self._many:
      return multihost_utils.reached_preemption_sync_point(step)
    return bool(self._why)

  def error(self, step: int) -> StoppedError:
    """What to raise when the state after this step is on the disk."""
    why = self._why or 'SIGTERM'
    return StoppedError(
      f'{why}: stopped after step {step}, which is saved; the same command'
      ' goes on',
      self._code,
    )

  def __enter__(self) -> 'Stop':
    if threading.current_thread() is not threading.main_thread():
      return self
    self._ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    self._theirs = theirs
    self._wakeup = signal.set_wakeup_fd(theirs.fileno())
    # Python's own handlers wait for a compilation to end.
    threading.Thread(target=self._count, daemon=True).start()
    for number in SIGNALS:
      # In a job of several processes SIGTERM is for JAX's service.
      theirs_too = self._many and number == signal.SIGTERM
      if not theirs_too and signal.getsignal(number) is not signal.SIG_IGN:
        self._before[number] = signal.signal(number, self._hear)
    return self

  def __exit__(self, *exc) -> None:
    if threading.current_thread() is not threading.main_thread():
      return
    for number, handler in self._before.items():
      signal.signal(number, handler)
    self._before = {}
    signal.set_wakeup_fd(self._wakeup)
    self._theirs.close()  # which ends the thread

  def _hear(self, number: int, frame) -> None:
    del frame
    if self._why:
      return
    self._why = signal.Signals(number).name
    self._code = 130 if number == signal.SIGINT else 143
    # `print` may be in the middle of another line.
    os.write(2, f'\n{self._why}: the run ends after this step\n'.encode())
    if self._many and number != signal.SIGTERM:
      os.kill(os.getpid(), signal.SIGTERM)

  def _count(self) -> None:
    first = None
    with self._ours as ours:
      while data := ours.recv(1):
        if data[0] not in self._before:
          continue
        first = time.monotonic() if first is None else first
        if time.monotonic() - first > _SECONDS_OF_ONE:
          os.write(2, b'a second signal: ended at once\n')
          os._exit(128 + data[0])
