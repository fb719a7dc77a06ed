"""A sparse layer on one device, and how many rows its dispatch holds."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

PADDED = ('einsum', 'scatter')
ALGORITHMS = (*PADDED, 'gather_reduce', 'ragged_all_to_all')


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
    matrices: D x F matrices of an expert: 2, or 3 where it is gated.
    kept: arrays [R, F] that an expert keeps for its backward pass.
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
  matrices: int
  kept: int
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


@dataclasses.dataclass(frozen=True)
class Dispatch:
  """An algorithm of ALGORITHMS with its options."""

  name: str
  options: Mapping[str, Any]

  def capacity(self, layer: Layer) -> int:
    """C, with what a padded dispatch adds to make chunks equal."""
    chunks = self.options.get('pipeline_degree', 1)
    return math.ceil(layer.capacity / chunks) * chunks

  def sent(self, layer: Layer) -> int:
    """Rows that a device has for others and itself."""
    if self.name in PADDED:
      return layer.experts * layer.groups * self.capacity(layer)
    return layer.most_rows(layer.groups, layer.experts)

  def rows(self, layer: Layer) -> int:
    """R, rows that a device holds for its experts."""
    if self.name in PADDED:
      return self.sent(layer)
    groups = layer.axis * layer.groups
    worst = layer.most_rows(groups, layer.local_experts)
    if self.name == 'gather_reduce':
      return worst
    balanced = self.options['buffer_factor'] * self.sent(layer)
    return math.ceil(min(balanced, worst))

  def falls_back(self, layer: Layer) -> bool:
    """Whether `gather_reduce` is compiled beside it."""
    least = self.roomy().rows(layer)
    fallback = self.options.get('overflow') == 'gather_reduce'
    return fallback and layer.axis > 1 and self.rows(layer) < least

  def roomy(self) -> 'Dispatch':
    """With a receive buffer that nothing can fill."""
    if 'buffer_factor' not in self.options:
      return self
    return Dispatch(self.name, {**self.options, 'buffer_factor': math.inf})
