"""Which layers are sparse, and the period that a stack scans over."""

import dataclasses
import itertools
import re

from moe_jax import registry
from moe_jax.errors import UserError


def sparse_layers(spec, num_layers: int) -> tuple[bool, ...]:
  """Whether each layer has an MoE in place of its FFN.

  Args:
    spec: 'none'; 'all'; 'every_n', the last of each n layers (0-based index l
      with l mod n = n - 1, as flaxformer's MIXED layout); 'every_n_at_r', l mod
      n = r (Hugging Face's Switch: r = 1, the same as flaxformer's for n = 2
      alone); or 0-based layer indices, '1,3,5' or a tuple.
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
  match = re.fullmatch(r'every_([1-9]\d*)(?:_at_(\d+))?', str(spec))
  if not match:
    forms = ['none', 'all', 'every_2', 'every_4', 'every_4_at_1', '1,3,5']
    raise registry.unknown('moe.layers', str(spec), forms)
  n = int(match[1])
  at = n - 1 if match[2] is None else int(match[2])
  sparse = tuple(i % n == at for i in range(num_layers))
  if not any(sparse):
    raise UserError(
      f'moe.layers={spec!r} makes none of {num_layers} layers sparse'
    )
  return sparse


def places(sparse: tuple[bool, ...], share: int) -> tuple[int, ...]:
  """0 for a dense layer, else the place, from 1, in its group of MoE layers.

  Args:
    sparse: by layer.
    share: MoE layers of a group, which share their experts.

  Raises:
    ValueError: groups that do not come out even.
  """
  count = sum(sparse)
  if share < 1 or count % share:
    raise UserError(
      f'moe.share_experts={share} must be at least 1, and divide the {count} '
      'MoE layers of the stack'
    )
  before = itertools.accumulate(sparse, initial=0)
  return tuple(n % share + 1 if s else 0 for s, n in zip(sparse, before))


@dataclasses.dataclass(frozen=True)
class Split:
  """Layers as prefix, `repeats` times `period`, suffix; kinds as `places`."""

  prefix: tuple[int, ...]
  period: tuple[int, ...]
  repeats: int
  suffix: tuple[int, ...]


def _whole(layers: tuple[int, ...], share: int) -> bool:
  """Whether no group of MoE layers reaches over the ends of these layers."""
  moe = [place for place in layers if place]
  return not moe or (moe[0] == 1 and moe[-1] == share)


def split(sparse: tuple[int, ...]) -> Split:
  """The repetition that covers most layers; of equal ones the shortest.

  Args:
    sparse: `places`, or by layer whether it is sparse. Layers that share their
      experts stay together.
  """
  n, share = len(sparse), max(sparse, default=0)
  best = Split(sparse, (), 0, ())
  covered = 0
  for p in range(1, n // 2 + 1):
    for start in range(n - 2 * p + 1):
      period, repeats = sparse[start : start + p], 1
      while sparse[start + repeats * p :][:p] == period:
        repeats += 1
      if not (_whole(sparse[:start], share) and _whole(period, share)):
        continue
      if repeats > 1 and repeats * p > covered:
        covered = repeats * p
        best = Split(sparse[:start], period, repeats, sparse[start + covered :])
  return best


def layer_names(sparse: tuple[int, ...]) -> list[tuple[str, str | None, int]]:
  """Where each layer's parameters are: (module, block in a period, repeat).

  Blocks outside the period are ('prefix_0', None, 0), those inside
  ('period', 'block_1', r), whose arrays have a leading axis of repeats.
  """
  s = split(sparse)
  names = [(f'prefix_{i}', None, 0) for i in range(len(s.prefix))]
  for r in range(s.repeats):
    names += [('period', f'block_{i}', r) for i in range(len(s.period))]
  return names + [(f'suffix_{i}', None, 0) for i in range(len(s.suffix))]
