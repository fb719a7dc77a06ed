"""Parameters and model FLOPs of a parameter tree, from shapes alone."""

import dataclasses
import math
from collections.abc import Iterable, Sequence


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One parameter: its path, shape, and logical axes ('layers', 'expert')."""

  path: str
  shape: tuple[int, ...]
  axes: tuple[str | None, ...]

  @property
  def size(self) -> int:
    return math.prod(self.shape)

  @property
  def is_matrix(self) -> bool:
    """Whether a token is multiplied by it, not only scaled or looked up."""
    own = [a for a in self.axes if a not in ('layers', 'expert')]
    return len(own) >= 2


def parameters(leaves: Iterable[Leaf]) -> int:
  """Parameters in total."""
  return sum(leaf.size for leaf in leaves)


def active_parameters(leaves: Iterable[Leaf], share: float) -> float:
  """Parameters that one token meets.

  Args:
    leaves: all parameters.
    share: part of the experts that a token is sent to, K / E.
  """
  return sum(
    leaf.size * (share if 'expert' in leaf.axes else 1) for leaf in leaves
  )


def flops_per_token(
  leaves: Sequence[Leaf],
  share: float,
  tied_head: bool,
  attention: Iterable[tuple[int, int, int]],
) -> float:
  """Model FLOPs of a token in a training step, forward and backward.

  Chowdhery et al. 2022 (PaLM), arXiv:2204.02311, appendix B: 6 for each active
  weight of a matrix product and 12 x heads x width x length for each attention
  layer, without a discount for the causal half. Recomputation, capacity
  padding and router arithmetic beyond its product are not model FLOPs.

  Args:
    leaves: all parameters; a lookup table counts where it is the head too.
    share: K / E.
    tied_head: the embedding table is also the head.
    attention: (layers, heads x width, keys) of each kind of attention.
  """
  is_lookup = lambda leaf: (
    leaf.path.rstrip("']").endswith('table')
    and (not tied_head or 'relative' in leaf.path)
  )
  matrices = [w for w in leaves if w.is_matrix and not is_lookup(w)]
  products = 6 * active_parameters(matrices, share)
  return products + sum(12 * n * width * keys for n, width, keys in attention)
