"""The mesh axes as a dispatch sees them from inside the region."""

import dataclasses
import math
from collections.abc import Mapping

MESH_AXES = ('data', 'fsdp', 'expert', 'model')


@dataclasses.dataclass(frozen=True)
class Axes:
  """Names of the mesh axes that have more than one device, and their sizes.

  An axis of size 1 is left out of every collective and every spec, which means
  the same and keeps XLA's program free of collectives with one participant; the
  code path does not change.

  Attributes:
    batch: axes that the tokens are sharded over.
    expert, fsdp, model: () or the one axis.
    sizes: of all four mesh axes.
  """

  batch: tuple[str, ...]
  expert: tuple[str, ...]
  fsdp: tuple[str, ...]
  model: tuple[str, ...]
  sizes: tuple[tuple[str, int], ...]

  def size(self, names: tuple[str, ...]) -> int:
    """Devices along `names`."""
    return math.prod(dict(self.sizes)[n] for n in names)


def make(shape: Mapping[str, int]) -> Axes:
  """Axes of a mesh whose `shape` maps the four names to sizes."""
  real = lambda *names: tuple(n for n in names if shape[n] > 1)
  return Axes(
    batch=real('data', 'fsdp', 'expert'),
    expert=real('expert'),
    fsdp=real('fsdp'),
    model=real('model'),
    sizes=tuple((n, shape[n]) for n in MESH_AXES),
  )
