"""Bytes on each device: of arrays by their sharding, of a layer's buffers."""

import dataclasses
import math
from collections.abc import Iterable, Mapping

from moe_jax.planning import layers

# Moments of a forward and a backward pass, in order; 'd_' is backward, and
# names what it makes the gradient of.
PHASES = (
  'send',  # rows to their experts
  'experts',  # hidden activations, rows out
  'return',  # rows out to their tokens
  'sum',
  'd_sum',
  'd_return',
  'd_hidden',
  'd_rows',
  'd_send',
)
_ALWAYS = PHASES[0], PHASES[-1]


@dataclasses.dataclass(frozen=True)
class Buffer:
  """An array that lives from one of PHASES through another.

  Attributes:
    name: what it holds.
    rows, bytes: its size.
    first, last: of PHASES.
  """

  name: str
  rows: int
  bytes: int
  first: str
  last: str

  def lives(self, phase: str) -> bool:
    at = PHASES.index
    return at(self.first) <= at(phase) <= at(self.last)


def peak(buffers: Iterable[Buffer]) -> tuple[str, int]:
  """The phase that holds most, and its bytes."""
  own = list(buffers)
  held = {p: sum(b.bytes for b in own if b.lives(p)) for p in PHASES}
  return max(held.items(), key=lambda item: item[1])


def buffers(
  layer: layers.Layer, dispatch: layers.Dispatch, cpu: bool = False
) -> list[Buffer]:
  """What one layer holds on one device beside its parameters and input.

  One table an algorithm, of what XLA was seen to keep in compiled programs.
  `peak` of it is within 25 % of XLA's own count, on CPU and in float32.

  Args:
    layer, dispatch: whose.
    cpu: with what stands in there for grouped products and ragged exchanges.
  """
  if dispatch.name == 'ragged_all_to_all':
    own = _ragged_all_to_all(layer, dispatch, cpu)
  else:
    table = {
      'einsum': _einsum,
      'scatter': _scatter,
      'gather_reduce': _gather_reduce,
    }[dispatch.name]
    own = table(layer, dispatch)
  own += _around(layer) + _experts(layer, dispatch)
  if cpu and dispatch.name not in layers.PADDED:
    own += _blocked(layer, dispatch)
  if dispatch.falls_back(layer):
    own = max(
      own, _fallback(own, layer, dispatch, cpu), key=lambda v: peak(v)[1]
    )
  return [b for b in own if b.bytes]


def _fallback(own, layer, dispatch, cpu) -> list[Buffer]:
  """`gather_reduce`, recomputed beside what the other path would have kept."""
  other = layers.Dispatch('gather_reduce', dispatch.options)
  kept = [
    Buffer(f'{b.name}, unused', b.rows, b.bytes, *_ALWAYS)
    for b in own
    if b.lives('sum') and b.lives('d_sum') and (b.first, b.last) != _ALWAYS
  ]
  return buffers(layer, other, cpu) + kept


def _make(layer: layers.Layer):
  """Buffers by their rows, width in units of D, and lifetime."""

  def make(name, rows, first, last=None, width=1, itemsize=layer.itemsize):
    size = rows * width * layer.width * itemsize
    return Buffer(name, rows, size, first, last or first)

  return make


def _around(layer: layers.Layer) -> list[Buffer]:
  """Router, tokens, and gradients of weights as they come out of products."""
  make, E = _make(layer), layer.experts
  tokens, edges = layer.groups * layer.tokens, layer.groups * layer.edges
  each = layer.local_experts * layer.width * layer.hidden
  ups = layer.matrices - 1
  found = [
    Buffer(
      'router logits and probabilities', tokens, 2 * tokens * E * 4, *_ALWAYS
    ),
    # Expert, token, place, seat and weight, as stored or as sorted.
    Buffer('edges', edges, 8 * edges * 4, *_ALWAYS),
    make('tokens out', tokens, 'sum'),
    make('d tokens out', tokens, 'd_sum'),
    make('d tokens', tokens, 'd_send'),
    Buffer('d experts out', E, each * 4, 'd_hidden', 'd_send'),
    Buffer('d experts in', E, ups * each * 4, 'd_rows', 'd_send'),
  ]
  if layer.mesh['fsdp'] > 1 or layer.itemsize != 4:
    size = layer.matrices * each * layer.itemsize
    found.append(Buffer('experts, whole', E, size, 'send', 'd_rows'))
  return found


def _experts(layer, dispatch) -> list[Buffer]:
  make, R = _make(layer), dispatch.rows(layer)
  kept = layer.kept * R * layer.hidden * layer.itemsize
  # Of one chunk at a time.
  chunk = R // dispatch.options.get('pipeline_degree', 1)
  d_hidden = chunk * layer.hidden * layer.itemsize
  ups = layer.matrices - 1
  return [
    make('rows', R, 'send', 'd_rows'),
    Buffer('hidden, kept', R, kept, 'experts', 'd_hidden'),
    make('rows out', R, 'experts', 'return'),
    make('d rows out', R, 'd_return', 'd_hidden'),
    Buffer('d hidden', chunk, d_hidden, 'd_hidden', 'd_hidden'),
    Buffer('d hidden, of products', chunk, ups * d_hidden, 'd_rows', 'd_rows'),
    make('d rows', R, 'd_rows', 'd_send'),
  ]


def _weighted(layer: layers.Layer, rows: int) -> list[Buffer]:
  """Rows that weights multiply, where the tokens are.

  The gradients of the weights need them again.
  """
  make = _make(layer)
  return [
    make('rows to sum', rows, 'sum', 'd_sum'),
    make('d sum, by row', rows, 'd_sum'),
    make('d rows to sum', rows, 'd_sum', 'd_return'),
  ]


def _scatter(layer, dispatch) -> list[Buffer]:
  R = dispatch.rows(layer)
  return _weighted(layer, R) + _exchanged(layer, R)


def _exchanged(layer: layers.Layer, R: int) -> list[Buffer]:
  """The sides of all-to-alls that are the tokens'."""
  make = _make(layer)
  if layer.axis == 1:
    return []
  return [
    make('rows to send', R, 'send'),
    make('rows returned', R, 'return'),
    make('d rows sent', R, 'd_send'),
  ]


def _einsum(layer, dispatch) -> list[Buffer]:
  make, R = _make(layer), dispatch.rows(layer)
  size = R * layer.tokens
  mask = lambda name, first, last, itemsize=4: Buffer(
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


def _gather_reduce(layer, dispatch) -> list[Buffer]:
  make, groups = _make(layer), layer.axis * layer.groups
  tokens, edges = groups * layer.tokens, groups * layer.edges
  found = _weighted(layer, dispatch.rows(layer))
  if layer.axis > 1:
    found += [
      make('tokens of all', tokens, 'send'),
      make('sums of all', tokens, 'sum', itemsize=4),
      make('d sums of all', tokens, 'd_sum', itemsize=4),
      make('d tokens of all', tokens, 'd_send'),
      Buffer('edges of all', edges, 5 * edges * 4, *_ALWAYS),
    ]
  return found


def _ragged_all_to_all(layer, dispatch, cpu) -> list[Buffer]:
  make, S = _make(layer), layer.axis
  sent, R = dispatch.sent(layer), dispatch.rows(layer)
  found = _weighted(layer, sent)
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


def _blocked(layer, dispatch) -> list[Buffer]:
  """Zeros that loops over blocks fill, made long before."""
  each = layer.local_experts * layer.width * layer.hidden * 4
  ups, E = layer.matrices - 1, layer.experts
  found = [
    Buffer('d experts out, as zeros', E, each, 'experts', 'd_return'),
    Buffer('d experts in, as zeros', E, ups * each, 'experts', 'd_hidden'),
  ]
  if dispatch.name == 'gather_reduce':
    R = dispatch.rows(layer)
    size = R * layer.hidden * layer.itemsize
    found.append(Buffer('d hidden, as zeros', R, size, 'd_sum', 'd_return'))
  return found


def shard_bytes(
  shape: Iterable[int],
  itemsize: int,
  spec: Iterable[str | tuple[str, ...] | None],
  mesh: Mapping[str, int],
) -> int:
  """Bytes of one device's part of an array.

  Args:
    shape: of the whole array.
    itemsize: bytes of an element.
    spec: mesh axes of each dimension, as a PartitionSpec; may be shorter.
    mesh: sizes of the mesh axes.
  """
  parts = 1
  for names in spec:
    names = (names,) if isinstance(names, str) else names or ()
    parts *= math.prod(mesh[n] for n in names)
  return math.prod(shape) * itemsize // parts
