"""Counts collectives in a compiled program's text."""

import re

_COLLECTIVES = (
  'all-to-all',
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'collective-permute',
  'ragged-all-to-all',
)


def count_collectives(text: str) -> dict[str, int]:
  """{'all-to-all': 2, ...}: instructions by kind, those that occur.

  Args:
    text: of a compiled program (`compiled.as_text()`). Asynchronous pairs count
      once, by their start; tuple-shaped results count once.
  """
  counts = {}
  for kind in _COLLECTIVES:
    # An instruction is 'name = shape op(...'. The shape may be a tuple with
    # spaces and, past five parts, '/*index=5*/' in it; operands are '%name'.
    found = re.findall(rf' {kind}(?:-start)?\(', text)
    if found:
      counts[kind] = len(found)
  return counts
