"""Tensors of a folder -> leaves of ours, a slice at a time.

Beside the result there is one tensor in memory, of stacked experts one expert,
and its copy on the way to a device: of a leaf that is spread over a mesh each
process reads what its devices hold.
"""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax.conversion import folders, tensors
from moe_jax.errors import UserError
from moe_jax.models import by_layer

# By leaf: what fills it, with the place in its leading axes.
Fills = dict[str, list[tuple[tuple[int, ...], tensors.Tensor, tensors.Part]]]
BALANCE = 'balance/'
GROUPS = ('params/', BALANCE)
# Bytes of a leaf on a device, up to which it is made on the host.
AT_ONCE = 1 << 24
STRIP = 1 << 22  # numbers


class _Place(tuple):
  """(path of a leaf, place in its leading axes); stands for an array."""

  def __getitem__(self, repeat):
    return _Place((tuple.__getitem__(self, 0), (repeat,)))


def places(leaves: Sequence[str], stacks: by_layer.Places) -> dict[str, Any]:
  """{'decoder/layer_3/attention/query': (path, place in leading axes)}.

  Args:
    leaves: paths, 'params/decoder/period/block_0/attention/query', or
      'balance/...', whose names here keep that.
    stacks: by stack, `StackConfig.places`.
  """
  found = {}
  for group, prefix in zip(GROUPS, ('', BALANCE)):
    tree: dict[str, Any] = {}
    for path in leaves:
      if path.startswith(group):
        *names, last = path.removeprefix(group).split('/')
        d = tree
        for n in names:
          d = d.setdefault(n, {})
        d[last] = _Place((path, ()))
    for name, place in by_layer.view(tree, stacks).items():
      found[prefix + name] = tuple(place)
  return found


def fills(
  table: Sequence[tensors.Tensor],
  shapes: Mapping[str, tuple[int, ...]],
  stacks: by_layer.Places,
) -> Fills:
  """What of a table fills which leaf; each element once.

  Args:
    table: of a family.
    shapes: of the leaves.
    stacks: as in `places`.

  Raises:
    ValueError: names leaves that the table lacks, or fills otherwise.
  """
  at, found, wrong = places(list(shapes), stacks), {k: [] for k in shapes}, []
  for t in table:
    for part in t.parts:
      if part.path not in at:
        wrong.append(f'{part.path} of {t.name} is not in the model')
        continue
      path, lead = at[part.path]
      index = (*lead, *part.at)
      if shapes[path][len(index) :] != t.ours(part):
        wrong.append(f'{t.name} is {t.ours(part)}, {path} {shapes[path]}')
      found[path].append((index, t, part))
  for path, own in found.items():
    size = sum(math.prod(t.ours(p)) for _, t, p in own)
    once = len({i for i, _, _ in own}) == len(own)
    if size != math.prod(shapes[path]) or not once:
      wrong.append(f'{path} is filled by {len(own)} tensors of {size} numbers')
  folders.refuse('model and table of tensors do not fit', wrong)
  return found


def check(
  found: Mapping[str, folders.Stored],
  table: Sequence[tensors.Tensor],
  copies: Mapping[str, str],
  where: folders.Path,
) -> None:
  """Raises ValueError that names the tensors which do not fit a table."""
  wanted = {t.name: t for t in table}
  wrong = [f'{name} is missing' for name in wanted if name not in found]
  for name, stored in found.items():
    t = wanted.get(name) or wanted.get(copies.get(name, ''))
    if t is None:
      wrong.append(f'{name} is unexpected')
    elif stored.shape != t.shape:
      wrong.append(f'{name} has shape {stored.shape}, not {t.shape}')
    elif stored.dtype not in folders.STORED:
      valid = ', '.join(folders.STORED)
      wrong.append(f'{name} is {stored.dtype}, not one of {valid}')
  folders.refuse(f'{where} is not such a checkpoint', wrong)
  for name, of in copies.items():
    if name in found and not _same(found[name], found[of]):
      wrong.append(f'{name} differs from {of}, which it is tied to here')
  folders.refuse(f'{where} is not such a checkpoint', wrong)


def _same(a: folders.Stored, b: folders.Stored) -> bool:
  """Compared as bits, some rows at a time: a NaN is a copy of itself."""
  if a.dtype != b.dtype:
    return False
  rest = tuple(slice(0, n) for n in a.shape[1:])
  for rows in _strips(a.shape):
    left, right = (v.read((rows, *rest)) for v in (a, b))
    if left.tobytes() != right.tobytes():
      return False
  return True


def _strips(shape: Sequence[int], start: int = 0) -> Iterator[slice]:
  """Of the first axis, some millions of numbers each."""
  step = max(1, STRIP // max(1, math.prod(shape[1:])))
  for first in range(0, shape[0], step):
    last = min(first + step, shape[0])
    yield slice(start + first, start + last)


def pieces(
  own: Sequence[tuple[tuple[int, ...], tensors.Tensor, tensors.Part]],
  found: Mapping[str, folders.Stored],
  index: tensors.Slices,
) -> Iterator[tuple[tensors.Slices, np.ndarray]]:
  """A slice of a leaf, part by part.

  Args:
    own: what fills the leaf.
    found: tensors by name.
    index: (start, stop) of each axis.

  Yields:
    (where in the slice, what stands there in the tensor's dtype), of tensors
    whose first axis is ours some rows, at least one expert where they are
    stacked, and others whole.
  """
  shape = [s.stop - s.start for s in index]
  for at, t, part in own:
    lead = [i - s.start for i, s in zip(at, index)]
    inside = zip(lead, shape)
    if not all(0 <= i < n for i, n in inside):
      continue
    begin = tuple(slice(i, i + 1) for i in lead)
    rest = index[len(at) :]
    for first in _apart(t, part, rest):
      value = t.read(part, (first, *rest[1:]), found[t.name].read)
      start = first.start - rest[0].start
      place = slice(start, start + first.stop - first.start)
      ends = (slice(0, n) for n in shape[len(at) + 1 :])
      yield (*begin, place, *ends), value[(None,) * len(at)]


def _apart(t: tensors.Tensor, part: tensors.Part, wanted: tensors.Slices):
  """The first axis of a part: at once where it lies across the tensor."""
  first = wanted[0]
  if part.axes.split()[0] != t.axes.split()[0]:
    return [first]
  return _strips([s.stop - s.start for s in wanted], first.start)


def leaf(own, found, index, dtype=np.float32) -> np.ndarray:
  """A slice of a leaf; as `pieces`."""
  out = np.empty([s.stop - s.start for s in index], dtype)
  for place, value in pieces(own, found, index):
    out[place] = value
  return out


def load(
  found: Mapping[str, folders.Stored],
  own: Fills,
  leaves: Mapping[str, Any],
) -> dict[str, Any]:
  """Reads all leaves.

  Args:
    found: tensors that fit the table (`check`).
    own: of the table (`fills`).
    leaves: by path, with shape, dtype and `sharding`; where that is None, the
      result is a NumPy array in host memory, else one on the mesh.

  Returns:
    Arrays by path. bfloat16 and float16 fit into float32 exactly.
  """
  return {path: _load(own[path], found, v) for path, v in leaves.items()}


def _load(own, found, wanted):
  bounds = lambda index: tuple(
    slice(*s.indices(n)[:2]) for s, n in zip(index, wanted.shape)
  )
  read = lambda index: leaf(own, found, bounds(index), wanted.dtype)
  sharding = getattr(wanted, 'sharding', None)
  if sharding is None:
    return read((slice(None),) * len(wanted.shape))
  shard = math.prod(sharding.shard_shape(wanted.shape))
  if shard * np.dtype(wanted.dtype).itemsize <= AT_ONCE:
    return jax.make_array_from_callback(wanted.shape, sharding, read)
  # Put together where it stays: the host holds a part of it at a time.
  where = sharding.addressable_devices_indices_map(wanted.shape)
  where = {d: bounds(index) for d, index in where.items()}
  made: dict[jax.Device, jax.Array] = {}
  for index in where.values():
    alike = [d for d, other in where.items() if other == index]
    if alike[0] in made:
      continue
    shape = [s.stop - s.start for s in index]
    made |= {d: jnp.zeros(shape, wanted.dtype, device=d) for d in alike}
    for place, value in pieces(own, found, index):
      start = np.array([s.start for s in place], np.int32)
      value = np.ascontiguousarray(value, wanted.dtype)
      for d in alike:
        made[d] = _put(made[d], jax.device_put(value, d), start)
      # Else parts queue up in the host's memory on their way.
      jax.block_until_ready([made[d] for d in alike])
  arrays = [made[d] for d in where]
  return jax.make_array_from_single_device_arrays(
    wanted.shape, sharding, arrays
  )


@functools.partial(jax.jit, donate_argnums=0)
def _put(x: jax.Array, value: jax.Array, start: jax.Array) -> jax.Array:
  """`x` with `value` from `start` on, in the memory of `x`."""
  return jax.lax.dynamic_update_slice(x, value, tuple(start))


def guard(found: Mapping[str, Any], name: str, c: Mapping[str, Any]) -> None:
  """Raises ValueError where a config has more layers or experts than tensors.

  Before a table is made of them, as long as the config says.

  Args:
    found: tensors by name.
    name: of a size, of each of which there is a tensor at least.
    c: the config.
  """
  if c[name] > len(found):
    raise UserError(f'{name} is {c[name]}, but there are {len(found)} tensors')
