"""Who does which run: several processes of one workdir take turns.

Each process walks over the same runs in the same order and takes the next one
that is neither finished nor held by another. A run is held by a lock on
WORKDIR/locks/<arm>.<seed>, which the kernel drops with the process that held
it: the run of one that was killed is taken by the others.
"""

import contextlib
import fcntl
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from moe_jax.studies import results

_WAIT = 1.0  # seconds between looks at what others do

Key = tuple[str, int]


def take(
  root: pathlib.Path,
  todo: Sequence[Any],
  needs: Callable[[Any], Sequence[Key]],
  seen: int,
) -> Iterator[Any]:
  """Yields runs, each held while the caller does it and writes its row.

  Ends when every run has a row, be it of another process. A run that failed
  since the beginning of the sweep is not tried again.

  Args:
    root: workdir of the sweep.
    todo: runs, with a `key`, in order.
    needs: the keys of the runs that must have a row before one can begin.
    seen: rows that were there when the sweep began.
  """
  left = list(todo)
  while left:
    over = _over(root, seen)
    left = [r for r in left if r.key not in over]
    for run in left:
      waits = any(k not in over for k in needs(run))
      with contextlib.nullcontext(None) if waits else _held(root, run) as held:
        # Another may have finished it since the look above.
        if held and run.key not in _over(root, seen):
          yield run
          break
    else:
      if left:
        time.sleep(_WAIT)


def _over(root, seen) -> set[Key]:
  """Keys of what is finished, or has failed in this sweep."""
  rows = results.read(root / results.FILE)
  done = {
    k
    for k, r in results.latest(rows).items()
    if r['status'] in results.FINISHED
  }
  return done | {(r['arm'], r['seed']) for r in rows[seen:]}


@contextlib.contextmanager
def alone(root: pathlib.Path) -> Iterator[None]:
  """For what one process of a sweep does after the other: its beginning."""
  path = root / 'locks' / '.begin'  # no run's: those have a seed at the end
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path, 'w') as f:
    fcntl.flock(f, fcntl.LOCK_EX)
    yield


@contextlib.contextmanager
def _held(root, run) -> Iterator[bool]:
  """Whether the run is this process's; its lock is let go at the end."""
  path = root / 'locks' / '{}.{}'.format(*run.key)
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path, 'w') as f:
    try:
      fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      yield False
    else:
      yield True
