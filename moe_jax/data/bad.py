"""What of the data cannot be read: counted and left out, or refused.

A record that cannot be read, a shard that is empty or gone, a line that is no
JSON: each is found when an index is built or a file is read, never while a
model trains, so that rows stay a pure function of the seed and their number.
A record that goes bad later ends the run with one line.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from absl import logging

from moe_jax.errors import UserError

_READ = 1024  # records read at once
_KEPT = 100  # lines


class Bad:
  """What was left out so far.

  Attributes:
    most: records that may be left out, `data.max_bad`; one more is an error.
    count: records.
    lines: what the first of them are, and why.
  """

  def __init__(self, most: int):
    if type(most) is not int or most < 0:
      raise UserError(
        f'data.max_bad={most!r}: expected a whole number, 0 or more'
      )
    self.most, self.count, self.lines = most, 0, []

  def add(self, line: str, records: int = 1) -> None:
    """Leaves records out.

    Args:
      line: names file and record, and says what is wrong.
      records: how many they are.

    Raises:
      ValueError: they are too many.
    """
    self.count += records
    if self.count > self.most:
      so_far = f'; {self.count} bad records so far' if self.count > 1 else ''
      raise UserError(f'{line}{so_far}; data.max_bad={self.most}')
    self.lines = [*self.lines, line][:_KEPT]

  def add_all(self, what: str, count: int, lines: Sequence[str]) -> None:
    """`add`, of what was left out when it was read at another time."""
    if count:
      self.add(f'{what}: {"; ".join(lines[:3])}', count)

  def __str__(self):
    shown = '; '.join(self.lines[:3])
    more = '; ...' if len(self.lines) > 3 else ''
    return (
      f'bad records left out: {self.count} (data.max_bad={self.most}): '
      f'{shown}{more}'
    )

  def warn(self) -> None:
    """Logs what was left out, if anything was."""
    if self.count:
      logging.warning('%s', self)


def note(count: int) -> str:
  """How many records are left out, for a heading; '' of none."""
  return f'; bad records left out: {count}' if count else ''


def where(source: Sequence, n: int) -> str:
  """A record's file, and its number there, from 0."""
  named = getattr(source, 'where', None)
  return named(n) if named else f'record {n}'


def readable(source: Sequence, bad: Bad) -> Iterator[tuple[int, Any]]:
  """(number, record) of all that can be read; `bad` is told of the others.

  Args:
    source: where an item that cannot be read is a ValueError. `lost`, where it
      has that, are (first, stop, line) of runs that there is no use in trying.
  """
  start, end = 0, len(source)
  for first, stop, line in (*getattr(source, 'lost', ()), (end, end, '')):
    for n in range(start, first, _READ):
      yield from _some(source, range(n, min(n + _READ, first)), bad)
    if line:
      bad.add(line, stop - first)
    start = stop


def _some(source, numbers, bad):
  try:
    yield from zip(numbers, source.__getitems__(numbers))
    return
  except UserError:
    pass
  for n in numbers:
    try:
      record = source[n]
    except UserError as e:
      bad.add(str(e))
    else:
      yield n, record
