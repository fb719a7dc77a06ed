"""Processes of one sweep on one machine, each with its share of the cores."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence


def pin(index: int, count: int) -> None:
  """Gives this process its share of the cores; before JAX starts.

  With one core each, two small runs side by side are faster than one after the
  other on two, whose products are too small to share.
  """
  if count == 1 or not hasattr(os, 'sched_setaffinity'):
    return
  mine = sorted(os.sched_getaffinity(0))[index::count]
  if mine:
    os.sched_setaffinity(0, mine)
  if len(mine) == 1:
    given = os.environ.get('XLA_FLAGS', '')
    os.environ['XLA_FLAGS'] = f'{given} --xla_cpu_multi_thread_eigen=false'


def run(call: Sequence[str], count: int) -> int:
  """`count` processes of a sweep, which take turns (`queue`).

  They end with this one, be it by Ctrl-C or SIGTERM.

  Args:
    call: the command line of the sweep.
    count: of the processes.

  Returns:
    The largest of their exit codes; 130 where it was ended.
  """
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  # A terminal's Ctrl-C is for this process alone: those that it starts inherit
  # that they do not hear it, be it while they import, and are ended below.
  heard = signal.signal(signal.SIGINT, signal.SIG_IGN)
  started = [
    subprocess.Popen([*call, '--jobs=1', f'--worker={i}/{count}'])
    for i in range(count)
  ]
  signal.signal(signal.SIGINT, heard)
  try:
    return max(p.wait() for p in started)
  except KeyboardInterrupt:
    for p in started:
      p.terminate()
    for p in started:
      p.wait()
    print('stopped; the same command goes on', file=sys.stderr)
    return 130
