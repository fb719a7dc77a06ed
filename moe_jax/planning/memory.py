"""Bytes on each device, from shapes and shardings."""

import math
from collections.abc import Iterable, Mapping


def shard_bytes(
  shape: Iterable[int],
  itemsize: int,
  spec: Iterable[str | tuple[str, ...] | None],
  mesh: Mapping[str, int],
) -> int:
  """Bytes of one device's part of an array.

  Args:
    shape: of the whole array.
    itemsize: bytes of an element.
    spec: mesh axes of each dimension, as a PartitionSpec; may be shorter.
    mesh: sizes of the mesh axes.
  """
  parts = 1
  for names in spec:
    names = (names,) if isinstance(names, str) else names or ()
    parts *= math.prod(mesh[n] for n in names)
  return math.prod(shape) * itemsize // parts
