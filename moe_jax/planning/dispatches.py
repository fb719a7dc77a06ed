"""What each dispatch holds and sends: its rows, buffers and exchanges."""

import abc
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from moe_jax.planning import layers, memory, traffic


@dataclasses.dataclass(frozen=True)
class Dispatch(abc.ABC):
  """An algorithm with its options.

  Attributes:
    options: by name, as its call string has them.
    name: of the algorithm.
    padded: whether rows that hold no token are computed.
    clips: whether a receive buffer may be too small.
    masks: products of all its rows with all tokens of their groups.
  """

  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  name = ''
  padded = False
  clips = False
  masks = 0

  @abc.abstractmethod
  def sent(self, layer: layers.Layer) -> int:
    """Rows that a device has for others and itself."""

  @abc.abstractmethod
  def rows(self, layer: layers.Layer) -> int:
    """R, rows that a device holds for its experts."""

  @abc.abstractmethod
  def buffers(self, layer: layers.Layer, cpu: bool) -> list[memory.Buffer]:
    """What it holds beside what all dispatches do; see `memory.buffers`."""

  @abc.abstractmethod
  def exchanges(
    self, layer: layers.Layer, cpu: bool
  ) -> list[traffic.Collective]:
    """Over an expert axis above 1; see `traffic.collectives`."""

  @property
  def chunks(self) -> int:
    return self.options.get('pipeline_degree', 1)

  def capacity(self, layer: layers.Layer) -> int:
    """C, with what makes chunks equal."""
    return math.ceil(layer.capacity / self.chunks) * self.chunks

  def computed(self, layer: layers.Layer) -> int:
    """Rows that are multiplied."""
    return self.rows(layer) if self.padded else layer.balanced_rows

  def fallback(self, layer: layers.Layer) -> 'Dispatch | None':
    """What is compiled beside it, for loads that it cannot hold."""
    if self.options.get('overflow') != 'gather_reduce' or layer.axis == 1:
      return None
    enough = self.rows(layer) >= self.roomy().rows(layer)
    return None if enough else GatherReduce()

  def roomy(self) -> 'Dispatch':
    """With a receive buffer that nothing can fill."""
    if 'buffer_factor' not in self.options:
      return self
    options = {**self.options, 'buffer_factor': math.inf}
    return dataclasses.replace(self, options=options)


class Padded(Dispatch):
  """Rows of all experts go out and come back, and so do their gradients."""

  padded = True

  def sent(self, layer):
    return layer.experts * layer.groups * self.capacity(layer)

  def rows(self, layer):
    return self.sent(layer)

  def exchanges(self, layer, cpu):
    del cpu
    rows = self.rows(layer) * layer.width * layer.itemsize
    host = self.options.get('host', 1)
    stages = [layer.axis] if host == 1 else [host, layer.axis // host]
    forward = [
      traffic.Collective('all-to-all', rows, n, again=True)
      for n in stages
      if n > 1
    ] * 2
    return forward + [dataclasses.replace(c, again=False) for c in forward]


class Scatter(Padded):
  name = 'scatter'

  def buffers(self, layer, cpu):
    del cpu
    R = self.rows(layer)
    return _weighted(layer, R) + _exchanged(layer, R)


class Einsum(Padded):
  name = 'einsum'
  masks = 2

  def buffers(self, layer, cpu):
    del cpu
    make, R = memory.maker(layer), self.rows(layer)
    size = R * layer.tokens
    mask = lambda name, first, last, itemsize=4: memory.Buffer(
      name, R, size * itemsize, first, last
    )
    # Each mask as it was scattered into and as a product reads it.
    return [
      *_exchanged(layer, R),
      mask('send mask', 'send', 'send'),
      mask('send mask, transposed', 'send', 'd_send', layer.itemsize),
      mask('combine mask', 'send', 'd_sum'),
      mask('combine mask, transposed', 'send', 'sum'),
      mask('d combine mask', 'd_sum', 'd_sum'),
      make('rows out, transposed', R, 'return', 'd_sum'),
    ]


class GatherReduce(Dispatch):
  name = 'gather_reduce'

  def sent(self, layer):
    return layer.most_rows(layer.groups, layer.experts)

  def rows(self, layer):
    return layer.most_rows(layer.axis * layer.groups, layer.local_experts)

  def buffers(self, layer, cpu):
    make, groups = memory.maker(layer), layer.axis * layer.groups
    tokens, edges = groups * layer.tokens, groups * layer.edges
    R = self.rows(layer)
    found = _weighted(layer, R)
    if cpu:
      size = R * layer.hidden * layer.itemsize
      zeros = memory.Buffer('d hidden, as zeros', R, size, 'd_sum', 'd_return')
      found += [*_blocked(layer), zeros]
    if layer.axis > 1:
      found += [
        make('tokens of all', tokens, 'send'),
        make('sums of all', tokens, 'sum', itemsize=4),
        make('d sums of all', tokens, 'd_sum', itemsize=4),
        make('d tokens of all', tokens, 'd_send'),
        memory.Buffer('edges of all', edges, 5 * edges * 4, *memory.ALWAYS),
      ]
    return found

  def exchanges(self, layer, cpu):
    del cpu
    S, groups = layer.axis, layer.groups
    tokens = groups * layer.tokens * layer.width
    edges = groups * layer.edges
    # Expert, seat and token of each edge, and the rows of each queue.
    numbers = 3 * edges + groups * layer.experts
    gather = lambda n, again: traffic.Collective('all-gather', S * n, S, again)
    scatter = lambda n: traffic.Collective('reduce-scatter', n, S)
    return [
      gather(tokens * layer.itemsize, True),
      gather(edges * 4, True),
      gather(numbers * 4, True),
      scatter(tokens * 4),
      gather(tokens * 4, False),
      scatter(tokens * layer.itemsize),
      scatter(edges * 4),
    ]


class RaggedAllToAll(Dispatch):
  name = 'ragged_all_to_all'
  clips = True

  def sent(self, layer):
    return layer.most_rows(layer.groups, layer.experts)

  def rows(self, layer):
    balanced = self.options['buffer_factor'] * self.sent(layer)
    return math.ceil(min(balanced, GatherReduce().rows(layer)))

  def buffers(self, layer, cpu):
    make, S = memory.maker(layer), layer.axis
    sent, R = self.sent(layer), self.rows(layer)
    found = _weighted(layer, sent) + (_blocked(layer) if cpu else [])
    if S == 1:
      return found
    if cpu:
      # Each device gathers all rows and takes its own.
      return found + [
        make('rows of all devices', S * sent, 'send'),
        make('rows out of all devices', S * R, 'return'),
        make('d rows out of all devices', S * sent, 'd_return'),
        make('d rows of all devices', S * R, 'd_send'),
      ]
    return found + [
      make('rows to send', sent, 'send'),
      make('rows by source', R, 'send'),
      make('rows out by source', R, 'return'),
      make('rows returned', sent, 'return'),
      make('d rows out by source', R, 'd_return'),
      make('d rows by source', R, 'd_send'),
      make('d rows sent', sent, 'd_send'),
    ]

  def exchanges(self, layer, cpu):
    S, width = layer.axis, layer.width * layer.itemsize
    sent, received = self.sent(layer), self.rows(layer)
    counts = S * layer.groups * layer.experts * 4
    if cpu:
      gather = lambda n: traffic.Collective('all-gather', S * n, S, True)
      there, back = gather(sent * width), gather(received * width)
    else:
      rows = min(layer.balanced_rows, sent) * width
      ragged = lambda worst: traffic.Collective(
        'ragged-all-to-all', rows, S, True, worst * width
      )
      there, back = ragged(sent), ragged(received)
    again = [traffic.Collective('all-gather', counts, S, True), there, back]
    return again + [dataclasses.replace(c, again=False) for c in (there, back)]


ALGORITHMS = {
  d.name: d for d in (Einsum, Scatter, GatherReduce, RaggedAllToAll)
}


def _weighted(layer: layers.Layer, rows: int) -> list[memory.Buffer]:
  """Rows that weights multiply, where the tokens are.

  The gradients of the weights need them again.
  """
  make = memory.maker(layer)
  return [
    make('rows to sum', rows, 'sum', 'd_sum'),
    make('d sum, by row', rows, 'd_sum'),
    make('d rows to sum', rows, 'd_sum', 'd_return'),
  ]


def _exchanged(layer: layers.Layer, R: int) -> list[memory.Buffer]:
  """The sides of all-to-alls that are the tokens'."""
  make = memory.maker(layer)
  if layer.axis == 1:
    return []
  return [
    make('rows to send', R, 'send'),
    make('rows returned', R, 'return'),
    make('d rows sent', R, 'd_send'),
  ]


def _blocked(layer: layers.Layer) -> list[memory.Buffer]:
  """Zeros that loops over blocks fill, made long before."""
  E, make = layer.experts, memory.Buffer
  return [
    make('d experts out, as zeros', E, layer.outer * 4, 'experts', 'd_return'),
    make('d experts in, as zeros', E, layer.inner * 4, 'experts', 'd_hidden'),
  ]
