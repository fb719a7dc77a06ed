"""A tensor of a checkpoint and the leaves of ours that it holds, by letters.

Axes are words of the house's dimension letters: 'HJ D' is a matrix whose rows
are heads times head width, 'E D FG' three axes whose last has two columns in
turn, 'E GF D' two halves one after the other. What ours has of it, 'D H J', is
the same letters in another order; letters that it lacks are picked from, as one
half of two. So a slice of a leaf is a slice of the tensor, and no more than
that is read.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

import numpy as np

Slices = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class Part:
  """A leaf of ours, or a part of one, that a tensor holds.

  Attributes:
    path: 'decoder/layer_3/attention/query', as `models.by_layer` has names;
      those of balancing state begin with 'balance/'.
    axes: of the part, in our order.
    at: its place in the leaf's leading axes, such as (expert,).
    pick: {letter: place} of the letters that ours lacks.
  """

  path: str
  axes: str
  at: tuple[int, ...] = ()
  pick: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor of a checkpoint.

  Attributes:
    name: in the checkpoint.
    axes: of it.
    parts: what of ours it holds; all of it.
    sizes: by letter.
    dtype: that it has in any checkpoint; '' is the checkpoint's.
  """

  name: str
  axes: str
  parts: tuple[Part, ...]
  sizes: Mapping[str, int]
  dtype: str = ''

  @property
  def shape(self) -> tuple[int, ...]:
    return tuple(math.prod(self.of(w)) for w in self.axes.split())

  @property
  def letters(self) -> str:
    return self.axes.replace(' ', '')

  def of(self, letters: str) -> tuple[int, ...]:
    """Sizes of these letters."""
    return tuple(self.sizes[c] for c in letters)

  def ours(self, part: Part) -> tuple[int, ...]:
    """The part's shape in our leaf."""
    return self.of(part.axes.replace(' ', ''))

  def read(
    self, part: Part, wanted: Slices, read: Callable[[Slices], np.ndarray]
  ) -> np.ndarray:
    """A slice of a part.

    Args:
      part: of `parts`.
      wanted: (start, stop) of each of its axes.
      read: gives a slice of the tensor as it is stored.

    Returns:
      An array of ours in the tensor's dtype, a view of what was read.
    """
    bounds = {c: (i, i + 1) for c, i in part.pick.items()}
    axes = part.axes.split()
    bounds |= {c: (s.start, s.stop) for c, s in zip(axes, wanted)}
    slices, shape, inner = [], [], []
    for word in self.axes.split():
      # What is read is whole in all letters of a word but the first.
      a, b = bounds[word[0]]
      rest = math.prod(self.of(word[1:]))
      slices.append(slice(a * rest, b * rest))
      shape += [b - a, *self.of(word[1:])]
      inner.append(slice(0, b - a))
      inner += [slice(*bounds[c]) for c in word[1:]]
    value = read(tuple(slices)).reshape(shape)[tuple(inner)]
    return self._in_our_order(value, part, dict.fromkeys(part.pick, 0))

  def write(self, part: Part, whole: np.ndarray, value: np.ndarray) -> None:
    """Puts a part of ours into its place in the tensor, `whole`."""
    view = whole.reshape(self.of(self.letters))
    self._in_our_order(view, part, part.pick)[...] = value

  def _in_our_order(self, value, part: Part, pick):
    """`value` has an axis for each letter; a view."""
    at = tuple(pick.get(c, slice(None)) for c in self.letters)
    left = [c for c in self.letters if c not in pick]
    return value[at].transpose([left.index(c) for c in part.axes.split()])
