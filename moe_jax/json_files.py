"""JSON out of files: a value, or one line that says what is wrong with it.

All that is read goes through here. Python's own reader ends in RecursionError
for what nests too deep, in UnicodeDecodeError for other bytes, waits for ever
at a FIFO, and reads a device until memory is gone.
"""

import json
import os
import stat
from typing import Any

from moe_jax.errors import UserError

DEPTH = 64  # brackets in brackets; of what is written here no more than 10
LIMIT = 1 << 28  # bytes


def parse(text: str | bytes, where: str) -> Any:
  """The value of a text.

  Args:
    text: of the whole value; bytes are UTF-8.
    where: what messages begin with: a path, or 'PATH, line 3'.

  Raises:
    ValueError: broken, or nested too deep.
  """
  try:
    text = text.decode() if isinstance(text, bytes) else text
    value = json.loads(text)
  except json.JSONDecodeError as e:
    at = '' if ', line ' in where else f', line {e.lineno}'
    raise UserError(f'{where}{at}: broken JSON: {e.msg}') from None
  except RecursionError:
    raise _deep(where) from None
  except ValueError as e:  # bytes, or a number of thousands of digits
    raise UserError(f'{where}: broken JSON: {e}') from None
  if _depth(text, value) > DEPTH:
    raise _deep(where)
  return value


def parse_object(text: str | bytes, where: str) -> dict[str, Any]:
  """`parse`, of what must be a JSON object."""
  value = parse(text, where)
  if not isinstance(value, dict):
    shown = text[:40]
    if isinstance(shown, bytes):
      shown = shown.decode(errors='replace')  # of a character half may be left
    raise UserError(f'{where}: expected a JSON object, found {shown!r}')
  return value


def read(path: str | os.PathLike) -> dict[str, Any]:
  """The JSON object that is all of a file.

  Raises:
    ValueError: no regular file, larger than `LIMIT`, or as `parse_object`.
    OSError: it is not there, or cannot be read.
  """
  return parse_object(read_bytes(path), str(path))


def lines(path: str | os.PathLike) -> list[str]:
  """The lines of a file of JSON lines, however large, not yet parsed.

  Bytes that are no UTF-8 become marks, which fail as JSON with a line number.
  """
  return read_bytes(path, 1 << 62).decode(errors='replace').splitlines()


def read_bytes(path: str | os.PathLike, limit: int = LIMIT) -> bytes:
  """All of a regular file; ValueError where it is none, or larger."""
  # A FIFO without a writer must not be waited for.
  opener = lambda name, flags: os.open(name, flags | os.O_NONBLOCK)
  with open(path, 'rb', opener=opener) as f:
    found = os.fstat(f.fileno())
    if not stat.S_ISREG(found.st_mode):
      raise UserError(f'{path} is no regular file')
    if found.st_size > limit:
      raise UserError(
        f'{path} has {found.st_size} bytes; at most {limit} are read'
      )
    return f.read()


def _deep(where: str) -> UserError:
  return UserError(f'{where}: JSON nested more than {DEPTH} deep')


def _depth(text: str, value: Any) -> int:
  """How deep a value nests, or a number above that, DEPTH at most."""
  # Lines of metrics, of which there are many, are not gone through.
  if text.count('[') + text.count('{') <= DEPTH:
    return 0
  depth, level = 0, [value]
  while level and depth <= DEPTH:
    depth += 1
    level = [
      x
      for v in level
      if isinstance(v, dict | list)
      for x in (v.values() if isinstance(v, dict) else v)
    ]
  return depth
