"""Who writes to a run's directory: one process, for as long as it lives.

The file `lock` has its owner's host and process id, and the owner holds `flock`
on it: the kernel gives that up when the process dies, however it dies, and
whatever process has its number later. Between hosts that is no proof: many
shared file systems keep such locks for each host alone. So what another host
left is taken only where the user says that it is dead, and an owner looks at
the file again before it renames anything.
"""

import atexit
import errno
import fcntl
import json
import os
import pathlib
import socket
from typing import TextIO

from moe_jax import json_files
from moe_jax.errors import UserError

FILE = 'lock'
# Of this process: open files, by directory.
_held: dict[pathlib.Path, TextIO] = {}


def hold(directory: str | os.PathLike, take_over: bool = False) -> None:
  """Takes the lock; until `release`, or the end of the process.

  A process may take again what it has.

  Args:
    directory: there already.
    take_over: the owner is known to be dead, though it cannot be seen from this
      host.

  Raises:
    ValueError: another process has it, or may have it.
    OSError: the file cannot be written.
  """
  directory = pathlib.Path(directory).absolute()
  if _mine(directory):
    return
  while True:
    f = open(directory / FILE, 'a+', errors='replace')
    try:
      try:
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except OSError as e:
        if e.errno not in (errno.EAGAIN, errno.EACCES):
          raise
        owner = _owner(f) or {'pid': '?', 'host': 'this host'}
        raise UserError(
          f'{directory} is in use by process {owner["pid"]} on {owner["host"]}'
        ) from None
      if _same(f, directory):
        break
    except BaseException:
      f.close()
      raise
    # The run that had it has deleted it meanwhile.
    f.close()
  try:
    _refuse(directory, f, take_over)
    f.truncate(0)
    f.write(json.dumps(_me()))
    f.flush()
  except BaseException:
    f.close()
    raise
  _held[directory] = f


def check(directory: str | os.PathLike) -> None:
  """Raises ValueError where this process has the lock no more."""
  directory = pathlib.Path(directory).absolute()
  if directory in _held and not _mine(directory):
    owner = _read(directory / FILE) or {'pid': '?', 'host': '?'}
    raise UserError(
      f'{directory} was taken over by process {owner["pid"]} on'
      f' {owner["host"]}; this one ends, and leaves it as it is'
    )


def release(directory: str | os.PathLike) -> None:
  """Gives up the lock, if this process has it; no file of it is left."""
  directory = pathlib.Path(directory).absolute()
  f = _held.get(directory)
  if f is None:
    return
  try:
    if _mine(directory):
      (directory / FILE).unlink()
  except OSError:
    pass  # The directory is gone.
  finally:
    del _held[directory]
    f.close()


@atexit.register
def _release_all() -> None:
  for directory in list(_held):
    release(directory)


def _refuse(directory: pathlib.Path, f: TextIO, take_over: bool) -> None:
  f.seek(0)
  if take_over or not f.read().strip():
    return
  owner = _owner(f)
  if owner is None:
    raise UserError(
      f'{directory / FILE} cannot be read; --take_over, if no run writes here'
    )
  if owner['host'] != socket.gethostname():
    raise UserError(
      f'{directory} is in use by process {owner["pid"]} on {owner["host"]}; if'
      ' that run is dead, --take_over'
    )


def _mine(directory: pathlib.Path) -> bool:
  """Whether this process holds the lock, and nobody wrote to it since."""
  f = _held.get(directory)
  return (
    f is not None and _same(f, directory) and _read(directory / FILE) == _me()
  )


def _same(f: TextIO, directory: pathlib.Path) -> bool:
  """Whether the open file is still the one of that name."""
  try:
    found = (directory / FILE).stat()
  except FileNotFoundError:
    return False
  return os.path.samestat(os.fstat(f.fileno()), found)


def _read(path: pathlib.Path) -> dict | None:
  try:
    with open(path, errors='replace') as f:
      return _owner(f)
  except FileNotFoundError:
    return None


def _owner(f: TextIO) -> dict | None:
  """{'host', 'pid'} as the file says, or None."""
  f.seek(0)
  try:
    owner = json_files.parse(f.read(), FILE)
    return {'host': str(owner['host']), 'pid': int(owner['pid'])}
  except (ValueError, KeyError, TypeError, OverflowError):
    return None


def _me() -> dict:
  return {'host': socket.gethostname(), 'pid': os.getpid()}
