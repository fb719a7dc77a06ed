"""A folder of .txt files as text, one domain a file.

Where a file has blank lines, its documents are the blocks between them; where
it has none, chunks of about `CHUNK` bytes that end at line ends. Bytes are kept
as they are, UTF-8 or not.
"""

import hashlib
import os
import pathlib
import re

from absl import logging

from moe_jax.data import bad as bad_lib, splitting
from moe_jax.errors import UserError

CHUNK = 2048  # bytes
VALIDATION = 0.07
_BLANK = re.compile(rb'\r?\n(?:[ \t\r\f]*\n)+')


def files(directory: str, bad: bad_lib.Bad) -> dict[str, bytes]:
  """The bytes of each file of a folder by domain, its name less `.txt`.

  Raises:
    ValueError: as `paths`, no file with text, or more than may be without.
  """
  there = paths(directory)
  found = {p.stem: p.read_bytes() for p in there}
  for path in there:
    if not found[path.stem].strip():
      del found[path.stem]
      bad.add(f'{path} has no text in it')
  if not found:
    raise UserError(f'no .txt file in data.dir={directory!r} has text in it')
  odd = [domain for domain, text in found.items() if not is_utf8(text)]
  if odd:
    logging.warning(
      '%d of %d files of %s are not UTF-8; their bytes are kept: %s',
      *(len(odd), len(found), directory, ', '.join(odd)),
    )
  return found


def paths(directory: str) -> list[pathlib.Path]:
  """The .txt files of a folder.

  Raises:
    ValueError: no such folder, no .txt file in it, or one that is no file or
      whose name is not UTF-8.
  """
  if not directory or not os.path.isdir(directory):
    raise UserError(f'data.dir={directory!r} is not a directory')
  found = sorted(pathlib.Path(directory).glob('*.txt'))
  if not found:
    raise UserError(f'no .txt file in data.dir={directory!r}')
  for path in found:
    # A folder has no bytes, and a FIFO would be waited for.
    if not path.is_file():
      raise UserError(f'{str(path)!r} in data.dir is no regular file')
    if not is_utf8(os.fsencode(path.name)):
      raise UserError(
        f'data.dir={directory!r}: the file name {os.fsencode(path.name)!r} is '
        'not UTF-8; it is to be the name of a domain'
      )
  return found


def is_utf8(text: bytes) -> bool:
  try:
    text.decode()
  except UnicodeDecodeError:
    return False
  return True


def documents(found: dict[str, bytes]) -> list[splitting.Example]:
  """The documents of all files; equal ones fall in the same split."""
  return [
    splitting.Example(
      domain, f'{domain}/{i}', text, key=hashlib.sha256(text).hexdigest()
    )
    for domain, whole in found.items()
    for i, text in enumerate(cut(whole))
  ]


def cut(text: bytes) -> list[bytes]:
  """The documents of a file, in order, none of them blank."""
  blocks = [b for b in _BLANK.split(text) if b.strip()]
  if len(blocks) > 1:
    return blocks
  chunks = [b'']
  for line in text.splitlines(keepends=True):
    if len(chunks[-1]) + len(line) > CHUNK:
      chunks.append(b'')
    chunks[-1] += line
  return [c for c in chunks if c.strip()]
