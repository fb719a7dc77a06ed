"""Bytes that the dispatch of rows to experts puts on the wire."""

import dataclasses
import math
from collections.abc import Iterable, Mapping


@dataclasses.dataclass(frozen=True)
class Buffers:
  """What one device exchanges for the sparse layers of a stack, one way.

  Attributes:
    layers: sparse layers.
    experts: E, of all devices.
    groups: of one device in a step, micro-batches added up.
    capacity: C, rows of an expert in a group.
    width: D.
    itemsize: bytes of an element of the activations.
  """

  layers: int
  experts: int
  groups: int
  capacity: int
  width: int
  itemsize: int

  @property
  def bytes(self) -> int:
    rows = self.experts * self.groups * self.capacity
    return self.layers * rows * self.width * self.itemsize


def all_to_all(
  buffers: Iterable[Buffers], mesh: Mapping[str, int], recomputed: bool
) -> dict[str, int]:
  """Bytes of a training step in all-to-alls over the expert axis.

  Of padded buffers E x G x C x D (dispatch 'scatter' and 'einsum'), empty rows
  included: rows go out and come back in the forward pass, and so do their
  gradients in the backward pass, four exchanges a layer; a backward pass that
  recomputes the layer adds the first two again. Each device keeps 1 / (size of
  the expert axis) of a buffer, the part of its own experts. Devices along the
  `model` axis hold the same tokens and exchange them each for themselves.

  Args:
    buffers: of the stacks.
    mesh: sizes of the mesh axes.
    recomputed: whether the backward pass repeats the exchanges.

  Returns:
    'payload_per_device', all that a device hands over, its own part included;
    'leaving_per_device', what leaves it; 'leaving_total', of all devices.
  """
  axis, exchanges = mesh['expert'], 6 if recomputed else 4
  payload = exchanges * sum(b.bytes for b in buffers) if axis > 1 else 0
  leaving = payload * (axis - 1) // axis
  return {
    'payload_per_device': payload,
    'leaving_per_device': leaving,
    'leaving_total': leaving * math.prod(mesh.values()),
  }
