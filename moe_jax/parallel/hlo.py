"""Counts collectives, and their bytes, in a compiled program's text."""

import math
import re

_COLLECTIVES = (
  'all-to-all',
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'collective-permute',
  'ragged-all-to-all',
)
_ITEMSIZE = {'pred': 1, 'c64': 8, 'c128': 16}


def count_collectives(text: str) -> dict[str, int]:
  """{'all-to-all': 2, ...}: instructions by kind, those that occur.

  Args:
    text: of a compiled program (`compiled.as_text()`). Asynchronous pairs count
      once, by their start; tuple-shaped results count once.
  """
  return {k: len(v) for k, v in _instructions(text).items()}


def collective_bytes(text: str, scope: str = '') -> dict[str, int]:
  """{'all-to-all': 4096, ...}: bytes of the results on one device, by kind.

  Args:
    text: as in `count_collectives`, without asynchronous pairs.
    scope: count only instructions whose `op_name` this pattern is found in.
  """
  found = {}
  for kind, shapes in _instructions(text, scope).items():
    found[kind] = sum(map(_bytes, shapes))
  return found


def _instructions(text: str, scope: str = '') -> dict[str, list[str]]:
  """The shapes of the results, by kind."""
  found: dict[str, list[str]] = {}
  for line in text.splitlines():
    # An instruction is 'name = shape op(...'. The shape may be a tuple with
    # spaces and, past five parts, '/*index=5*/' in it; operands are '%name'.
    for kind in _COLLECTIVES:
      at = re.search(rf' {kind}(?:-start)?\(', line)
      if at and re.search(scope, _op_name(line)):
        found.setdefault(kind, []).append(line[: at.start()])
  return found


def _op_name(line: str) -> str:
  found = re.search(r'op_name="([^"]*)"', line)
  return found[1] if found else ''


def _bytes(shapes: str) -> int:
  """Of every 'f32[2,3]' in a text."""
  total = 0
  for dtype, dims in re.findall(r'\b([a-z]\w*)\[([\d,]*)\]', shapes):
    size = _ITEMSIZE.get(dtype) or int(re.search(r'\d+', dtype)[0]) // 8
    total += size * math.prod(int(n) for n in dims.split(',') if n)
  return total
