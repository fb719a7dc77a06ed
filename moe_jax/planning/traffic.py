"""Bytes that the dispatch of rows to experts puts on the wire."""

import dataclasses
import math
from collections.abc import Iterable, Mapping

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
  layer: layers.Layer, dispatch: layers.Dispatch, cpu: bool = False
) -> list[Collective]:
  """Forward and backward of one micro-batch; () without an expert axis.

  Args:
    layer, dispatch: whose.
    cpu: gathers of all rows, which stand in there for ragged exchanges.
  """
  if layer.axis == 1:
    return []
  if dispatch.name in layers.PADDED:
    return _padded(layer, dispatch)
  if dispatch.name == 'gather_reduce':
    return _gather_reduce(layer)
  return _ragged(layer, dispatch, cpu)


def _padded(layer, dispatch) -> list[Collective]:
  """Rows go out and come back, and so do their gradients."""
  rows = dispatch.rows(layer) * layer.width * layer.itemsize
  host = dispatch.options.get('host', 1)
  stages = [layer.axis] if host == 1 else [host, layer.axis // host]
  forward = [
    Collective('all-to-all', rows, n, again=True) for n in stages if n > 1
  ] * 2
  return forward + [dataclasses.replace(c, again=False) for c in forward]


def _gather_reduce(layer) -> list[Collective]:
  S, groups = layer.axis, layer.groups
  tokens = groups * layer.tokens * layer.width
  edges = groups * layer.edges
  # Expert, seat and token of each edge, and the rows of each queue.
  numbers = 3 * edges + groups * layer.experts
  gather = lambda n, again: Collective('all-gather', S * n, S, again)
  return [
    gather(tokens * layer.itemsize, True),
    gather(edges * 4, True),
    gather(numbers * 4, True),
    Collective('reduce-scatter', tokens * 4, S),
    gather(tokens * 4, False),
    Collective('reduce-scatter', tokens * layer.itemsize, S),
    Collective('reduce-scatter', edges * 4, S),
  ]


def _ragged(layer, dispatch, cpu) -> list[Collective]:
  S, width = layer.axis, layer.width * layer.itemsize
  sent, received = dispatch.sent(layer), dispatch.rows(layer)
  counts = S * layer.groups * layer.experts * 4
  if cpu:
    there = Collective('all-gather', S * sent * width, S, True)
    back = Collective('all-gather', S * received * width, S, True)
  else:
    rows = min(layer.balanced_rows, sent) * width
    ragged = lambda worst: Collective(
      'ragged-all-to-all', rows, S, True, worst * width
    )
    there, back = ragged(sent), ragged(received)
  again = [Collective('all-gather', counts, S, True), there, back]
  return again + [dataclasses.replace(c, again=False) for c in (there, back)]


def wire(
  of: Iterable[tuple[layers.Layer, layers.Dispatch]],
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
    if dispatch.falls_back(layer):
      # Its backward pass recomputes it, remat or not.
      other = layers.Dispatch('gather_reduce', dispatch.options)
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


def flops(layer: layers.Layer, dispatch: layers.Dispatch) -> Mapping[str, int]:
  """Of one layer's forward pass on a device: 'dispatch' and 'experts'.

  Products of the rows computed; gathers and sums are no FLOPs here.
  """
  rows = dispatch.rows(layer)
  if dispatch.name not in layers.PADDED:
    rows = layer.balanced_rows
  experts = 2 * rows * layer.width * layer.hidden * layer.matrices
  masks = 2 * 2 * rows * layer.tokens * layer.width
  return {
    'dispatch': masks if dispatch.name == 'einsum' else 0,
    'experts': experts,
  }
