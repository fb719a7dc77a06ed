"""What all sources of batches share: rows by number, slices, prefetching."""

import abc
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from moe_jax.errors import UserError

Row = dict[str, np.ndarray]


class HeldOut(abc.ABC):
  """Rows that are looked at, once and in order.

  Attributes:
    fingerprint: hash of all that is read: a run that is resumed on other data
      is told apart by it.
    validation_rows: how many there are.
    left_out: records that could not be read; no row is of them.
  """

  fingerprint: str
  validation_rows: int
  left_out: int = 0

  @abc.abstractmethod
  def validation_row(self, row: int) -> Row:
    """Arrays of a row of validation; of padding, past the last one."""

  def describe(self) -> str:
    """A few lines for a person: what it is, and how much."""
    return f'data {self.fingerprint[:12]}: {self.validation_rows} rows held out'

  def validation(
    self, *, batch_size: int, process_index: int = 0, process_count: int = 1
  ) -> Iterator[Row]:
    """All of validation once, in order, as slices of global batches.

    The last batch is padded.
    """
    mine = rows_of(batch_size, process_index, process_count)
    make = lambda k: stack(
      [self.validation_row(k * batch_size + i) for i in mine]
    )
    count = math.ceil(self.validation_rows / batch_size)
    return prefetched(range(count), make)


class Batches(HeldOut):
  """Rows as batches: a pure function of (seed, first row, rows).

  A global batch has the same rows in the same order on any number of processes
  and threads; a process gets its contiguous slice. So the state of the data is
  one integer, the rows there have been.
  """

  @abc.abstractmethod
  def train_row(self, seed: int, row: int) -> Row:
    """Arrays of a training row; rows are numbered through all epochs."""

  def sources(self, seed: int, row: int) -> tuple[str, ...]:
    """Names of what a training row was cut from; () where nothing has any."""
    del seed, row
    return ()

  def kept(self) -> dict[str, Any]:
    """What a run remembers of it, small and of JSON's types."""
    return {}

  def changes(self, kept: Any) -> str:
    """In what a run's data differ from these; '' where it cannot be told.

    Args:
      kept: what `kept` gave then, out of a file.
    """
    del kept
    return ''

  def train(
    self,
    *,
    seed: int,
    batch_size: int,
    first_row: int = 0,
    process_index: int = 0,
    process_count: int = 1,
  ) -> Iterator[Row]:
    """This process's slices of the global batches, from a row on, without end.

    Args:
      seed: 0 or more; of the order, the windows and the noise.
      batch_size: rows of the global batch.
      first_row: of the first batch; a row is the same whatever batch it is in.
      process_index: of this process.
      process_count: processes, which must divide batch_size.
    """
    mine = rows_of(batch_size, process_index, process_count)
    check_counters(seed=seed, first_row=first_row)
    make = lambda n: stack(
      [self.train_row(seed, first_row + n * batch_size + i) for i in mine]
    )
    return prefetched(range((sys.maxsize - first_row) // batch_size), make)

  def batch(self, *, seed: int, batch_size: int, step: int) -> Row:
    """The whole global batch of a step."""
    mine = rows_of(batch_size, 0, 1)
    check_counters(seed=seed, step=step)
    return stack([self.train_row(seed, step * batch_size + i) for i in mine])


def check_counters(**counters: int) -> None:
  """Raises ValueError, with its name, where one of them is below 0."""
  for what, value in counters.items():
    if value < 0:
      raise UserError(f'{what}={value}: expected 0 or more')


def rows_of(batch_size: int, process_index: int, process_count: int) -> range:
  """A process's rows of a global batch.

  Raises:
    ValueError: processes that do not divide the batch, or no such process.
  """
  if batch_size < 1 or batch_size % process_count:
    raise UserError(
      f'batch_size={batch_size} is not divisible by {process_count} processes'
    )
  if not 0 <= process_index < process_count:
    raise UserError(
      f'process_index={process_index}: expected 0 to {process_count - 1}'
    )
  rows = batch_size // process_count
  return range(process_index * rows, (process_index + 1) * rows)


def stack(examples: Sequence[dict]) -> dict[str, np.ndarray]:
  """Rows, dicts of arrays of equal shapes -> a batch."""
  return {k: np.stack([e[k] for e in examples]) for k in examples[0]}


def prefetched(
  numbers: range, make: Callable[[int], dict[str, np.ndarray]]
) -> Iterator[dict[str, np.ndarray]]:
  """`make(n)` of each number in order, a few ahead."""
  # Grain imports jax where it is installed; all else here works without.
  import grain

  # Rows are made in Python: more threads would only fight over the GIL.
  options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
  dataset = grain.MapDataset.range(numbers.start, numbers.stop).map(make)
  return iter(dataset.to_iter_dataset(options))
