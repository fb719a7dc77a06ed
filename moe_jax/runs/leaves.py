"""The named arrays of a checkpoint: what they are, and reading some of them."""

import pathlib
from typing import Any

import orbax.checkpoint as ocp

from moe_jax.errors import UserError


def specs(leaves: dict[str, Any]) -> dict[str, list]:
  """{name: [shape, dtype]}, as JSON has it."""
  return {k: [list(v.shape), str(v.dtype)] for k, v in leaves.items()}


def read_part(path: pathlib.Path, wanted: dict[str, Any]) -> dict[str, Any]:
  """Some of the leaves; Orbax's standard handler reads all or nothing."""
  args = ocp.args.PyTreeRestore(
    item=wanted,
    restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
    partial_restore=True,
  )
  with ocp.PyTreeCheckpointer() as reader:
    return reader.restore(path, args=args)


def check(
  stored: dict[str, list], wanted: dict, path: pathlib.Path, partial: bool
) -> None:
  """Raises ValueError that names the leaves in which the two differ."""
  asked = specs(wanted)
  faults = [f'{k} is not in it' for k in asked if k not in stored]
  if not partial:
    faults += [f'{k} is in it only' for k in stored if k not in asked]
  for k in asked:
    if k in stored and stored[k] != asked[k]:
      there, here = (f'{tuple(s)} {d}' for s, d in (stored[k], asked[k]))
      faults.append(f'{k} is {there} in it, {here} here')
  faults += [
    f'{k} has no sharding here'
    for k, v in wanted.items()
    if getattr(v, 'sharding', None) is None
  ]
  if faults:
    more = f'; and {len(faults) - 8} more' if len(faults) > 8 else ''
    raise UserError(
      f'checkpoint {path} does not fit the state: {"; ".join(faults[:8])}{more}'
    )
