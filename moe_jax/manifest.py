"""SHA-256 digests of a directory's files, kept among them.

Neither file systems nor the libraries that read these files notice a flipped
bit. Costs one pass over the files, at 1 to 2 GiB a second on a CPU that has
instructions for SHA.
"""

import hashlib
import json
import os
import pathlib
import stat

from moe_jax import json_files

NAME = 'MANIFEST.json'
# What says that a file is not what it was. Whatever else a system answers (no
# permission, a disk or a server that fails) says nothing of the file.
_GONE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


def write(directory: pathlib.Path) -> None:
  """Writes the manifest of all files in and under a directory."""
  files = {
    p.relative_to(directory).as_posix(): [p.stat().st_size, _digest(p)]
    for p in sorted(directory.rglob('*'))
    if p.is_file() and p != directory / NAME
  }
  # Without white space there is no byte in it that may change unnoticed.
  text = json.dumps({'files': files}, separators=(',', ':'))
  (directory / NAME).write_text(text)


def fault(directory: pathlib.Path, digests: bool = True) -> str:
  """What is wrong with a directory that has a manifest; '' where nothing is.

  Args:
    directory: of the files.
    digests: read the files; else their names and sizes are all that is known.

  Raises:
    OSError: it cannot be read, whole or not; it may be another time.
  """
  try:
    files = json_files.read(directory / NAME)['files']
    files = [(name, size, digest) for name, (size, digest) in files.items()]
  except (*_GONE, ValueError, KeyError, TypeError, AttributeError) as e:
    return f'no readable {NAME} ({type(e).__name__})'
  root = os.path.realpath(directory)
  for name, size, digest in files:
    path = directory / name
    try:
      # Whoever wrote the manifest may have named what has no end.
      inside = os.path.realpath(path).startswith(f'{root}{os.sep}')
      found = path.stat()
      if not inside or not stat.S_ISREG(found.st_mode):
        return f'{name!r} is no regular file in it'
      if found.st_size != size:
        return f'{name} has {found.st_size} bytes, not {size}'
      if digests and _digest(path) != digest:
        return f'{name} does not match its SHA-256'
    except _GONE as e:
      return f'{name}: {e.strerror}'
    except ValueError:  # a null byte, or half a character
      return f'{name!r} is no name of a file'
  return ''


def _digest(path: pathlib.Path) -> str:
  with path.open('rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()
