"""Which layers are sparse, and the period that a stack scans over."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from moe_jax import registry
from moe_jax.errors import UserError

# A layer's module, its block in a period or None, and its repeat.
Place = tuple[str, str | None, int]


def sparse_layers(spec, num_layers: int) -> tuple[bool, ...]:
  """Whether each layer has an MoE in place of its FFN.

  Args:
    spec: 'none'; 'all'; 'every_n', the last of each n layers (0-based index l
      with l mod n = n - 1, as flaxformer's MIXED layout); 'every_n_at_r', l mod
      n = r (Hugging Face's Switch: r = 1, the same as flaxformer's for n = 2
      alone); 'from_n', all but the first n; or 0-based layer indices, '1,3,5'
      or a tuple.
    num_layers: layers of the stack.

  Raises:
    ValueError: another form, an index out of range, or no sparse layer at all
      from a spec that promises some.
  """
  if re.fullmatch(r'-?\d+(,-?\d+)*', str(spec)):
    spec = tuple(int(i) for i in str(spec).split(','))
  if isinstance(spec, tuple | list):
    bad = [i for i in spec if not isinstance(i, int) or not 0 <= i < num_layers]
    if bad:
      raise UserError(
        f'moe.layers={tuple(spec)}: {bad[0]!r} is no layer; valid: 0 to '
        f'{num_layers - 1}'
      )
    return tuple(i in spec for i in range(num_layers))
  if spec in ('none', 'all'):
    return (spec == 'all',) * num_layers
  every = re.fullmatch(r'every_([1-9]\d*)(?:_at_(\d+))?', str(spec))
  first = re.fullmatch(r'from_(\d+)', str(spec))
  if every:
    n = int(every[1])
    at = n - 1 if every[2] is None else int(every[2])
    sparse = tuple(i % n == at for i in range(num_layers))
  elif first:
    sparse = tuple(i >= int(first[1]) for i in range(num_layers))
  else:
    forms = [
      *('none', 'all', 'every_2', 'every_4', 'every_4_at_1', 'from_1', '1,3,5')
    ]
    raise registry.unknown('moe.layers', str(spec), forms)
  if not any(sparse):
    raise UserError(
      f'moe.layers={spec!r} makes none of {num_layers} layers sparse'
    )
  return sparse


@dataclasses.dataclass(frozen=True)
class Split:
  """Layers as prefix, `repeats` times `period`, suffix."""

  prefix: tuple[Any, ...]
  period: tuple[Any, ...]
  repeats: int
  suffix: tuple[Any, ...]


def split(layers: Sequence[Any], cuts: Sequence[bool] | None = None) -> Split:
  """The repetition that covers most layers; of equal ones the shortest.

  Args:
    layers: records, whose equality counts.
    cuts: for 0 to n layers, whether they may be cut behind so many; by default
      everywhere.
  """
  layers, n = tuple(layers), len(layers)
  cuts = [True] * (n + 1) if cuts is None else cuts
  same = [layers.index(layer) for layer in layers]
  first, best, most = n, 0, 0
  for p in range(1, n // 2 + 1):
    for start in range(n - 2 * p + 1):
      repeats = _repeats(same, cuts, start, p)
      if repeats > 1 and repeats * p > best * most:
        first, best, most = start, p, repeats
  end = first + best * most
  return Split(layers[:first], layers[first : first + best], most, layers[end:])


def _repeats(same, cuts, start, p):
  """How often the p layers from `start` come, one time after the other."""
  end, own = start, same[start : start + p]
  while cuts[start] and same[end : end + p] == own and cuts[end + p]:
    end += p
  return (end - start) // p


def places(split_: Split) -> tuple[Place, ...]:
  """Where each layer's parameters are.

  Blocks outside the period are ('prefix_0', None, 0), those inside
  ('period', 'block_1', r), whose arrays have a leading axis of repeats.
  """
  name = lambda part, layers: [
    (f'{part}_{i}', None, 0) for i in range(len(layers))
  ]
  period = [
    ('period', f'block_{i}', r)
    for r in range(split_.repeats)
    for i in range(len(split_.period))
  ]
  return (
    *name('prefix', split_.prefix),
    *period,
    *name('suffix', split_.suffix),
  )
