"""The sparse layers of a stack, one device's share of them."""

import dataclasses
import math
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Layer:
  """The sparse layers of a stack, which are alike, and one device's share.

  Attributes:
    layers: how many.
    micro_batches: of a training step.
    groups: G, of the device in a micro-batch.
    tokens: T of a group.
    edges: N of a group, used or not.
    choices: K, the mean of a token.
    experts: E, of all devices.
    capacity: C, rows of an expert in a group.
    most: the most that an expert can be asked for, which is dropless.
    width: D.
    hidden: F over the size of the `model` axis.
    products: multiplications of a row by its expert's matrices.
    inner, outer: numbers in the matrices of the device's experts before and
      after the hidden width.
    kept: arrays [R, F] that an expert keeps for its backward pass.
    made: arrays [R, F] that its backward pass makes gradients of before the
      activation.
    itemsize: bytes of an element of the activations.
    mesh: sizes of the mesh axes.
  """

  layers: int
  micro_batches: int
  groups: int
  tokens: int
  edges: int
  choices: float
  experts: int
  capacity: int
  most: int
  width: int
  hidden: int
  products: int
  inner: int
  outer: int
  kept: int
  made: int
  itemsize: int
  mesh: Mapping[str, int]

  @property
  def axis(self) -> int:
    """S, devices of the expert axis."""
    return self.mesh['expert']

  @property
  def local_experts(self) -> int:
    return self.experts // self.axis

  @property
  def balanced_rows(self) -> int:
    """Rows of one device's tokens, and at its experts where loads are equal."""
    return math.ceil(self.groups * self.tokens * self.choices)

  def most_rows(self, groups: int, experts: int) -> int:
    """The most rows that these groups can have at so many experts."""
    return groups * min(self.edges, experts * self.capacity)

  def balanced(self) -> 'Layer':
    """With the capacity that equal loads fill."""
    C = math.ceil(self.tokens * self.choices / self.experts)
    return dataclasses.replace(self, capacity=min(C, self.most))

  def dropless(self) -> 'Layer':
    """With the capacity that no load exceeds."""
    return dataclasses.replace(self, capacity=self.most)
