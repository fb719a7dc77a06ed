"""The four-axis mesh ('data', 'fsdp', 'expert', 'model').

Axes of size 1 are always there, so that one device and a thousand run the same
code. Sequence and pipeline parallelism are out of scope.
"""

import math
from collections.abc import Sequence

import jax

from moe_jax import registry
from moe_jax.errors import UserError
from moe_jax.parallel.axes import MESH_AXES


def exact(data: int = 1, fsdp: int = 1, expert: int = 1, model: int = 1):
  """These sizes; all of the devices must be used."""
  return dict(data=data, fsdp=fsdp, expert=expert, model=model)


def _auto(num_devices: int, num_experts: int):
  def auto(fsdp: int = 1, expert: int = 0, model: int = 1):
    """Wishes, each cut to what divides the devices left; data gets the rest.

    Without a wish the expert axis is as wide as experts and devices allow.
    """
    shape, left = {}, num_devices
    widest = max(num_experts, 1)
    for name, wish in (
      ('model', model),
      ('expert', expert or widest),
      ('fsdp', fsdp),
    ):
      if not isinstance(wish, int) or wish < 1:
        raise UserError(f'mesh: {name}={wish!r} must be a whole number from 1')
      shape[name] = math.gcd(wish, left)
      left //= shape[name]
    return exact(data=left, **shape)

  return auto


def shape(
  spec: str, num_devices: int | None, num_experts: int = 0
) -> dict[str, int]:
  """Axis sizes from a call string.

  Args:
    spec: `'auto()'`, which fits the devices found (expert parallelism as wide
      as the experts and the devices allow, the rest data), `'auto(expert=4)'`
      with wishes that are cut down where there are fewer devices, or
      `'exact(data=2, expert=4)'`.
    num_devices: devices to fit; None takes any exact sizes, and no 'auto'.
    num_experts: experts of the model; 0 for a dense one, which may use the
      expert axis as another data axis.

  Raises:
    ValueError: exact sizes that are not the devices found, or an expert axis
      that does not divide the experts.
  """
  table = {'exact': exact}
  if num_devices is not None:
    table['auto'] = _auto(num_devices, num_experts)
  sizes = registry.call(spec, table, 'mesh')
  for name, n in sizes.items():
    if not isinstance(n, int) or n < 1:
      raise UserError(f'mesh: {name}={n!r} must be a whole number from 1')
  needed = math.prod(sizes.values())
  if num_devices not in (None, needed):
    raise UserError(
      f'mesh {spec!r} needs {needed} devices, found {num_devices}; '
      "'auto()' fits what is found"
    )
  if num_experts % sizes['expert']:
    # Devices that are not there yet may be any number.
    common = math.gcd(num_experts, num_devices or num_experts)
    valid = [n for n in range(1, common + 1) if common % n == 0]
    raise UserError(
      f'num_experts={num_experts} is not divisible by the expert axis of size '
      f'{sizes["expert"]}; sizes that do: {", ".join(map(str, valid))}'
    )
  return sizes


def fitted(spec: str, num_devices: int, num_experts: int = 0) -> dict[str, int]:
  """`shape`, for which exact sizes need not be those of the devices."""
  exactly = registry.parse(spec)[0] == 'exact'
  return shape(spec, None if exactly else num_devices, num_experts)


def make(sizes: dict[str, int] | str, devices: Sequence | None = None):
  """A `jax.sharding.Mesh` of these axis sizes over `devices` (default all).

  Axis types are Auto explicitly: from jax 0.8 on the default is Explicit, under
  which a spec that differs from an argument's sharding raises.

  Args:
    sizes: of all four axes, or a call string: `'exact(data=2, expert=4)'` takes
      the first of the devices, 'auto()' fits them.
    devices: at least as many as the mesh needs.

  Raises:
    ValueError: a wrong call string, or too few devices.
  """
  found = jax.device_count() if devices is None else len(devices)
  if isinstance(sizes, str):
    sizes = fitted(sizes, found)
  dims = tuple(sizes[a] for a in MESH_AXES)
  if math.prod(dims) > found:
    raise UserError(
      f'a mesh of {describe(sizes)} needs {math.prod(dims)} devices, found '
      f'{found}'
    )
  auto = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
  return jax.make_mesh(dims, MESH_AXES, axis_types=auto, devices=devices)


def abstract(sizes: dict[str, int]) -> jax.sharding.AbstractMesh:
  """A mesh of these axis sizes without devices: to trace and to plan with."""
  dims = tuple(sizes[a] for a in MESH_AXES)
  auto = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
  return jax.sharding.AbstractMesh(dims, MESH_AXES, axis_types=auto)


def single(device=None):
  """The mesh of one device: the default of layers used on their own."""
  devices = [device] if device is not None else jax.devices()[:1]
  return make(exact(), devices)


def describe(sizes: dict[str, int]) -> str:
  """`'data=2 expert=4'`: the axes with more than one device."""
  real = [f'{k}={v}' for k, v in sizes.items() if v > 1]
  return ' '.join(real) or 'one device'
