"""Parameters and model FLOPs of a parameter tree, from shapes alone."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence

# Parts by the module they stand under; the first that is found decides.
_PARTS = (
  ('relative', 'relative bias'),
  ('attention', 'attention'),
  ('cross', 'cross-attention'),
  ('router', 'router'),
  ('experts', 'experts'),
  ('dense', 'dense branch'),
  ('dense_gate', 'dense branch'),
  ('extra', 'extra FFN'),
  ('ffn', 'dense FFN'),
  ('head', 'head'),
  ('table', 'embedding'),
)


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One parameter: its path, shape, and logical axes ('layers', 'expert')."""

  path: str
  shape: tuple[int, ...]
  axes: tuple[str | None, ...]

  @property
  def size(self) -> int:
    return math.prod(self.shape)

  @functools.cached_property
  def names(self) -> tuple[str, ...]:
    """The path's names: ('decoder', 'period', 'block_0', 'ffn', ...)."""
    return tuple(re.findall(r"'(\w+)'", self.path))

  @property
  def part(self) -> str:
    """What it belongs to: 'attention', 'experts', 'norms', ..., 'other'."""
    if self.names[-1] == 'scale':
      return 'norms'
    return next((part for n, part in _PARTS if n in self.names), 'other')

  @property
  def is_matrix(self) -> bool:
    """Whether a token is multiplied by it, not only scaled or looked up."""
    own = [a for a in self.axes if a not in ('layers', 'expert')]
    added = self.names[-1].endswith('_bias')  # one of heads has two axes
    return len(own) >= 2 and not added and self.part != 'relative bias'


@dataclasses.dataclass(frozen=True)
class Stack:
  """What one sequence makes a stack do.

  Attributes:
    tokens: of the sequence in this stack.
    share: part of the experts that a token is sent to, K / E; where r layers
      share the experts, r K / E.
    choices: experts that it is sent to, K; r K.
    attention: (layers, heads x width, keys) of each kind of attention; where a
      value's width differs from a key's, by the mean of both.
  """

  tokens: int
  share: float = 1.0
  choices: float = 1.0
  attention: tuple[tuple[int, float, int], ...] = ()


def parameters(leaves: Iterable[Leaf]) -> int:
  """Parameters in total."""
  return sum(leaf.size for leaf in leaves)


def active_parameters(
  leaves: Iterable[Leaf], share: Mapping[str, float], looked_up: bool = True
) -> float:
  """Parameters that one token meets; of both stacks where there are two.

  Args:
    leaves: all parameters.
    share: K / E of each stack, by its name; r K / E where r layers share the
      experts, of which at most all are met.
    looked_up: count an embedding table whose rows are only looked up; one that
      is the head, too, counts in any case.
  """
  leaves = list(leaves)
  looked_up = looked_up or all(leaf.part != 'head' for leaf in leaves)
  return sum(
    leaf.size * (min(1, share[leaf.names[0]]) if 'expert' in leaf.axes else 1)
    for leaf in leaves
    if looked_up or leaf.part != 'embedding'
  )


def parts(
  leaves: Iterable[Leaf], share: Mapping[str, float]
) -> dict[str, dict[str, float]]:
  """{'attention': {'total': ..., 'active': ...}, ...}, the largest first."""
  found: dict[str, list[Leaf]] = {}
  for leaf in leaves:
    found.setdefault(leaf.part, []).append(leaf)
  sizes = {
    name: {'total': parameters(own), 'active': active_parameters(own, share)}
    for name, own in found.items()
  }
  return dict(sorted(sizes.items(), key=lambda item: -item[1]['total']))


def forward_flops(
  leaves: Sequence[Leaf], stacks: Mapping[str, Stack], tied_head: bool
) -> float:
  """Model FLOPs of one sequence, forward; backward is twice as much again.

  Chowdhery et al. 2022 (PaLM), arXiv:2204.02311, appendix B: 2 for each active
  weight of a matrix product and token (what all experts share for each of the
  token's choices), and 4 x heads x width x keys for each
  token and attention layer, without a discount for the causal half. An
  encoder's weights meet the encoder's tokens, and so do the decoder's
  projections to keys and values of the encoder; all else of the decoder, and
  the head, meets the target tokens. Lookups, norms, softmax, recomputation,
  capacity padding and router arithmetic beyond its product are not counted.

  The papers publish FLOPs a sequence without a definition. Ours for 512 and 114
  tokens, in units of 1e9 and as a ratio to theirs, and the part of it that is
  matrix products in the blocks (without attention's products and the head):

  | model      | paper  | ours          | blocks' matrices |
  | T5-Base    |    124 |    142  1.145 |    124  1.000    |
  | T5-Large   |    425 |    481  1.133 |    441  1.038    |
  | Switch-XXL |  6,300 |  6,975  1.107 |  6,814  1.082    |
  | Switch-C   |    890 |  1,064  1.195 |  1,010  1.135    |
  | ST-MoE-L   |    645 |    620  0.960 |    579  0.898    |
  | ST-MoE-32B | 20,200 | 22,043  1.091 | 21,743  1.076    |

  No definition that we tried makes all six.

  Args:
    leaves: all parameters, paths beginning with a stack's name or 'embedding'.
    stacks: by name; 'decoder', and 'encoder' where there is one.
    tied_head: the embedding table is also the head.
  """
  flops = 0.0
  for leaf in leaves:
    if not leaf.is_matrix or (leaf.part == 'embedding' and not tied_head):
      continue
    stack = stacks.get(leaf.names[0], stacks['decoder'])
    # A part that all experts share is multiplied by each that is chosen.
    times = stack.choices if leaf.part == 'experts' else 1
    times = stack.share if 'expert' in leaf.axes else times
    if leaf.part == 'cross-attention' and leaf.names[-1] in ('key', 'value'):
      stack = stacks['encoder']
    flops += 2 * leaf.size * times * stack.tokens
  for stack in stacks.values():
    for layers, width, keys in stack.attention:
      flops += 4 * layers * width * stack.tokens * keys
  return flops
