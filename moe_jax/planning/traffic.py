"""Bytes that the dispatch of rows to experts puts on the wire."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from moe_jax.planning import layers


@dataclasses.dataclass(frozen=True)
class Collective:
  """One exchange of one layer, as one of its devices sees it.

  Attributes:
    kind: as XLA names it.
    bytes: of its results, empty rows included; of a ragged exchange, what is
      in them.
    devices: that take part.
    again: whether a backward pass that recomputes the layer repeats it.
    worst: of a ragged exchange, bytes that can be in its results.
  """

  kind: str
  bytes: int
  devices: int
  again: bool = False
  worst: int | None = None

  def payload(self, worst: bool = False) -> int:
    """Bytes that a device hands over, its own part included."""
    n = self.worst if worst and self.worst is not None else self.bytes
    # A gather's result is of all devices, a scattered sum's of one.
    return n * self.devices if self.kind == 'reduce-scatter' else n

  def leaving(self, worst: bool = False) -> int:
    """Bytes of the payload that leave the device.

    A device keeps its own part, but in the worst case of a ragged exchange. A
    gathered shard goes to all others, which is as much.
    """
    n = self.payload(worst)
    if worst and self.worst is not None:
      return n
    return n * (self.devices - 1) // self.devices


def collectives(
  layer: layers.Layer, dispatch: Any, cpu: bool = False
) -> list[Collective]:
  """Forward and backward of one micro-batch; () without an expert axis.

  Args:
    layer: whose.
    dispatch: from `planning.dispatches`.
    cpu: gathers of all rows, which stand in there for ragged exchanges.
  """
  return dispatch.exchanges(layer, cpu) if layer.axis > 1 else []


def wire(
  of: Iterable[tuple[layers.Layer, Any]],
  recomputed: bool,
  cpu: bool = False,
) -> dict[str, int]:
  """Bytes of a training step that dispatches exchange over the expert axis.

  Devices along the `model` axis hold the same tokens and exchange them each for
  themselves.

  Args:
    of: the layers of all stacks.
    recomputed: whether the backward pass repeats the forward exchanges.
    cpu: as in `collectives`.

  Returns:
    'payload_per_device', all that a device hands over, its own part included;
    'leaving_per_device', what leaves it where loads are equal, and
    'worst_per_device', at any loads; 'leaving_total', of all devices.
  """
  total = dict.fromkeys(('payload', 'leaving', 'worst'), 0)
  devices = 0
  for layer, dispatch in of:
    devices = math.prod(layer.mesh.values())
    times = layer.layers * layer.micro_batches
    moved = _once(collectives(layer, dispatch, cpu), recomputed)
    other = dispatch.fallback(layer)
    if other:
      # Its backward pass recomputes it, remat or not.
      again = _once(collectives(layer, other, cpu), True)
      moved['worst'] = max(moved['worst'], again['worst'])
    for k, v in moved.items():
      total[k] += times * v
  return {
    **{f'{k}_per_device': v for k, v in total.items()},
    'leaving_total': total['leaving'] * devices,
  }


def _once(found: Iterable[Collective], recomputed: bool) -> dict[str, int]:
  """Sums over the exchanges of a layer and micro-batch."""
  own = [(c, 1 + (c.again and recomputed)) for c in found]
  return {
    'payload': sum(n * c.payload() for c, n in own),
    'leaving': sum(n * c.leaving() for c, n in own),
    'worst': sum(n * c.leaving(worst=True) for c, n in own),
  }


def flops(layer: layers.Layer, dispatch: Any) -> Mapping[str, int]:
  """Of one layer's forward pass on a device: 'dispatch' and 'experts'.

  Products of the rows computed; gathers and sums are no FLOPs here.
  """
  rows = dispatch.computed(layer)
  masks = dispatch.masks * 2 * rows * layer.tokens * layer.width
  return {'dispatch': masks, 'experts': 2 * rows * layer.products}
