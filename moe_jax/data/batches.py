"""What all sources of batches share: slices, stacking, prefetching."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from moe_jax.errors import UserError


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
