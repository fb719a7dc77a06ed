"""Bytes on each device: of arrays by their sharding, of a layer's buffers."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

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
ALWAYS = PHASES[0], PHASES[-1]


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
  layer: layers.Layer, dispatch: Any, cpu: bool = False
) -> list[Buffer]:
  """What one layer holds on one device beside its parameters and input.

  A table for each dispatch (`planning.dispatches`), of what XLA was seen to
  keep in compiled programs. `peak` of it is within 25 % of XLA's own count, on
  CPU and in float32.

  Args:
    layer: whose.
    dispatch: from `planning.dispatches`.
    cpu: with what stands in there for grouped products and ragged exchanges.
  """
  own = dispatch.buffers(layer, cpu) + _around(layer)
  own += _experts(layer, dispatch)
  other = dispatch.fallback(layer)
  if other:
    both = _beside(own, buffers(layer, other, cpu))
    own = max(own, both, key=lambda v: peak(v)[1])
  return [b for b in own if b.bytes]


def _beside(own: list[Buffer], other: list[Buffer]) -> list[Buffer]:
  """The other path, recomputed beside what this one would have kept."""
  return other + [
    Buffer(f'{b.name}, unused', b.rows, b.bytes, *ALWAYS)
    for b in own
    if b.lives('sum') and b.lives('d_sum') and (b.first, b.last) != ALWAYS
  ]


def maker(layer: layers.Layer):
  """Buffers by their rows, width in units of D, and lifetime."""

  def make(name, rows, first, last=None, width=1, itemsize=layer.itemsize):
    size = rows * width * layer.width * itemsize
    return Buffer(name, rows, size, first, last or first)

  return make


def _around(layer: layers.Layer) -> list[Buffer]:
  """Router, tokens, and gradients of weights as they come out of products."""
  make, E = maker(layer), layer.experts
  tokens, edges = layer.groups * layer.tokens, layer.groups * layer.edges
  found = [
    Buffer(
      'router logits and probabilities', tokens, 2 * tokens * E * 4, *ALWAYS
    ),
    # Expert, token, place, seat and weight, as stored or as sorted.
    Buffer('edges', edges, 8 * edges * 4, *ALWAYS),
    make('tokens out', tokens, 'sum'),
    make('d tokens out', tokens, 'd_sum'),
    make('d tokens', tokens, 'd_send'),
    Buffer('d experts out', E, layer.outer * 4, 'd_hidden', 'd_send'),
    Buffer('d experts in', E, layer.inner * 4, 'd_rows', 'd_send'),
  ]
  if layer.mesh['fsdp'] > 1 or layer.itemsize != 4:
    size = (layer.inner + layer.outer) * layer.itemsize
    found.append(Buffer('experts, whole', E, size, 'send', 'd_rows'))
  return found


def _experts(layer, dispatch) -> list[Buffer]:
  make, R = maker(layer), dispatch.rows(layer)
  kept = layer.kept * R * layer.hidden * layer.itemsize
  # Of one chunk at a time.
  chunk = R // dispatch.chunks
  d_hidden = chunk * layer.hidden * layer.itemsize
  made = layer.made * d_hidden
  return [
    make('rows', R, 'send', 'd_rows'),
    Buffer('hidden, kept', R, kept, 'experts', 'd_hidden'),
    make('rows out', R, 'experts', 'return'),
    make('d rows out', R, 'd_return', 'd_hidden'),
    Buffer('d hidden', chunk, d_hidden, 'd_hidden', 'd_hidden'),
    Buffer('d hidden, of products', chunk, made, 'd_rows', 'd_rows'),
    make('d rows', R, 'd_rows', 'd_send'),
  ]


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
