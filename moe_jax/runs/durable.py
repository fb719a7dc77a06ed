"""What a power cut must not take: files on the disk, before names change.

A rename is atomic for processes, not for the disk: the new name may get there
before the bytes, and the old file may be gone by then. So files and folders are
written through first; `fsync` is also what reports a write that failed late.
"""

import errno
import os
import pathlib


def sync(path: str | os.PathLike) -> None:
  """Waits until a file is on the disk; of a folder, the names in it.

  Raises:
    OSError: it is not, or cannot be.
  """
  fd = os.open(path, os.O_RDONLY)
  try:
    os.fsync(fd)
  except OSError as e:
    # Some network file systems have no such call for folders.
    if not (os.path.isdir(path) and e.errno in (errno.EINVAL, errno.ENOTSUP)):
      raise
  finally:
    os.close(fd)


def sync_tree(directory: str | os.PathLike) -> None:
  """`sync` of a folder and of all in and under it, the folders last."""
  for parent, _, files in os.walk(directory, topdown=False):
    for name in files:
      sync(os.path.join(parent, name))
    sync(parent)


def rename(source: str | os.PathLike, target: str | os.PathLike) -> None:
  """Renames what is on the disk already, and waits for the names.

  Raises:
    OSError: nothing was renamed, or it may not outlive a power cut.
  """
  os.rename(source, target)
  parents = [pathlib.Path(p).absolute().parent for p in (source, target)]
  for parent in dict.fromkeys(parents):
    sync(parent)


def replace(path: str | os.PathLike, text: str) -> None:
  """Writes a file whole or not at all, and through to the disk."""
  path = pathlib.Path(path)
  tmp = path.with_name(f'.{path.name}.{os.getpid()}')
  try:
    tmp.write_text(text)
    sync(tmp)
    os.replace(tmp, path)
  except OSError:
    tmp.unlink(missing_ok=True)
    raise
  sync(path.absolute().parent)
