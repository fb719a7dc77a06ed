"""Checkpoints: asynchronous, verified, restored onto any mesh.

Orbax moves the arrays; this module adds what it lacks. Orbax notices neither
flipped bits nor an empty directory with a step's name, so every step carries a
SHA-256 manifest, and restoring skips a step that does not match it. A step is
written under `_tmp/` and renamed into place after its manifest, so a directory
`<step>/` is whole or was damaged later; old steps leave by the same door, but
those that were saved to be kept.

    DIRECTORY/<step>/{state/, meta.json, MANIFEST.json}
    DIRECTORY/_quarantine/   damaged steps, moved aside
    DIRECTORY/_tmp/          being written or deleted; never read

The directory is on a file system that renames atomically (no object store), and
is shared by all processes.
"""

import json
import os
import pathlib
import shutil
from collections.abc import Sequence
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

from moe_jax import manifest
from moe_jax.errors import UserError
from moe_jax.runs import finite

_META, _STATE, _KEEP = 'meta.json', 'state', 'keep'
_TMP, _QUARANTINE = '_tmp', '_quarantine'


class Checkpointer:
  """Saves and restores one run's train state; a context manager.

  Close it: a save that is running when the interpreter exits is lost.

  Attributes:
    directory: pathlib.Path, created by the first save.
    keep: how many newest steps stay on disk, beside those kept for ever.
  """

  def __init__(self, directory: str | os.PathLike, keep: int):
    if keep < 1:
      raise UserError(f'keep is {keep}; at least 1 checkpoint must stay')
    self.directory = pathlib.Path(directory).absolute()
    self.keep = keep
    self._orbax = ocp.StandardCheckpointer()
    self._pool = futures.ThreadPoolExecutor(1, 'checkpoint')
    self._pending: futures.Future | None = None
    self._saves = 0

  def save(
    self, step: int, state: Any, data: dict[str, Any], keep: bool = False
  ) -> None:
    """Starts saving; every process calls it, with the same arguments.

    Waits for the save before it, then returns as soon as `state` is copied to
    host memory: its buffers may be donated or deleted at once.

    Args:
      step: number of the directory; not on disk yet.
      state: pytree of jax arrays.
      data: small JSON dict (rows trained on, fingerprint, config).
      keep: for ever. It stands in the step, so that whoever goes on with the
        run, with whatever config, spares it, too.

    Raises:
      ValueError: the step exists, or `data` is not JSON.
      RuntimeError: the save before this one failed.
    """
    self.wait()
    if (self.directory / str(step)).exists():
      raise UserError(f'step {step} is already saved in {self.directory}')
    leaves = named(state)
    meta = {'step': step, 'data': data, 'leaves': _specs(leaves)}
    meta |= {_KEEP: True} if keep else {}
    meta = json.dumps(meta, sort_keys=True, allow_nan=False)
    # A name of its own: threads of a save that failed may still be writing.
    self._saves += 1
    tmp = self.directory / _TMP / f'{step}_{self._saves}'
    if jax.process_index() == 0:
      shutil.rmtree(tmp.parent, ignore_errors=True)
      tmp.mkdir(parents=True)
    # Orbax refuses arrays without elements; they hold nothing to save.
    leaves = {k: v for k, v in leaves.items() if v.size}
    self._orbax.save(tmp / _STATE, leaves)
    self._pending = self._pool.submit(self._commit, step, tmp, meta)

  def latest(self) -> int | None:
    """The newest step on disk, not yet verified; None where there is none."""
    return max(self._steps(), default=None)

  def restore(
    self, abstract_state: Any, step: int | None = None, partial: bool = False
  ) -> tuple[Any, dict[str, Any]]:
    """Reads the newest step that is whole, or the step asked for.

    A newest step that is damaged, or whose numbers are not finite, is moved to
    `_quarantine/` with a line in the log, and the one before it is tried. A
    step asked for by number is never moved.

    Args:
      abstract_state: pytree of jax.ShapeDtypeStruct with shardings (any mesh),
        or of arrays.
      step: a step on disk; None is the newest.
      partial: leave out what is on disk and not asked for, unread.

    Returns:
      (state placed as `abstract_state` says, the `data` of that step)

    Raises:
      ValueError: no usable step; or leaves that are missing, not asked for, or
        of another shape or dtype, by name.
    """
    self.wait()
    passed: set[int] = set()
    while True:
      chosen = self._choose(step, passed)
      state, data = self._read(chosen, abstract_state, partial)
      fault = finite.fault(named(state))
      if not fault:
        return state, data
      if step is not None:
        raise UserError(f'{self.directory / str(step)}: {fault}')
      passed.add(chosen)
      if jax.process_index() == 0:
        self._quarantine(chosen, fault)

  def wait(self) -> None:
    """Blocks until the running save is on disk, for every process.

    Raises:
      RuntimeError: the save failed; steps saved before it are intact, and the
        next save works again.
    """
    self._join()
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices('checkpoint')

  def close(self) -> None:
    """Finishes the running save. Waits for no other process, which may be dead.

    Raises:
      RuntimeError: the save failed.
    """
    try:
      self._join()
    finally:
      self._orbax.close()
      self._pool.shutdown()

  def __enter__(self) -> 'Checkpointer':
    return self

  def __exit__(self, *exc) -> None:
    self.close()

  def _join(self) -> None:
    pending, self._pending = self._pending, None
    if pending is not None:
      pending.result()

  def _steps(self) -> list[int]:
    return steps(self.directory)

  def _commit(self, step: int, tmp: pathlib.Path, meta: str) -> None:
    """In the background: manifest, rename, prune; all by process 0."""
    try:
      # In Orbax this includes a barrier: after it all processes have written.
      self._orbax.wait_until_finished()
      if jax.process_index() != 0:
        return
      (tmp / _META).write_text(meta)
      manifest.write(tmp)
      os.rename(tmp, self.directory / str(step))
      for old in self._steps()[: -self.keep]:
        if _is_kept(self.directory / str(old)):
          continue
        # A kill during deletion must not leave half a step in sight.
        trash = tmp.with_name(f'{old}_old')
        os.rename(self.directory / str(old), trash)
        shutil.rmtree(trash)
    except Exception as e:
      raise RuntimeError(
        f'checkpoint of step {step} in {self.directory} was not saved: {e}'
      ) from e

  def _read(
    self, step: int, abstract_state: Any, partial: bool
  ) -> tuple[Any, dict[str, Any]]:
    """`restore`, of a step that is whole."""
    path = self.directory / str(step)
    meta = json.loads((path / _META).read_text())
    wanted = named(abstract_state)
    _check(meta['leaves'], wanted, path, partial)
    stored = {k: v for k, v in wanted.items() if v.size}
    read = _read_part if partial else self._orbax.restore
    state = read(path / _STATE, stored) if stored else {}
    for k, v in wanted.items():
      if k not in stored:
        state[k] = jax.device_put(jnp.zeros(v.shape, v.dtype), v.sharding)
    treedef = jax.tree.structure(abstract_state)
    return treedef.unflatten(state[k] for k in wanted), meta['data']

  def _choose(self, step: int | None, passed: set[int]) -> int:
    """The step to read: process 0 verifies, all processes agree."""
    choice, error = -1, 'process 0 found no usable checkpoint; see its error'
    if jax.process_index() == 0:
      choice, error = self._verified(step, passed)
    if jax.process_count() > 1:
      choice = int(multihost_utils.broadcast_one_to_all(np.int32(choice)))
    if choice < 0:
      raise UserError(error)
    return choice

  def _verified(self, step: int | None, passed: set[int]) -> tuple[int, str]:
    """(a step that is whole, '') or (-1, what to tell the user)."""
    steps = self._steps()
    if step is not None:
      if step not in steps:
        have = ', '.join(map(str, steps)) or 'none'
        return -1, f'no step {step} in {self.directory}; there are: {have}'
      fault = manifest.fault(self.directory / str(step))
      if fault:
        return -1, f'{self.directory / str(step)} is damaged: {fault}'
      return step, ''
    for s in sorted(set(steps) - passed, reverse=True):
      fault = manifest.fault(self.directory / str(s))
      if not fault:
        return s, ''
      self._quarantine(s, fault)
    tried = len(passed.union(steps))
    if not tried:
      return -1, f'{self.directory} holds no checkpoint'
    return -1, (
      f'{self.directory} holds no usable checkpoint: all {tried} were'
      f' damaged and are in {_QUARANTINE}/'
    )

  def _quarantine(self, step: int, fault: str) -> None:
    aside = self.directory / _QUARANTINE / str(step)
    n = 0
    while aside.exists():
      n += 1
      aside = aside.with_name(f'{step}_{n}')
    try:
      aside.parent.mkdir(exist_ok=True)
      os.rename(self.directory / str(step), aside)
      where = f'moved to {_QUARANTINE}/{aside.name}'
    except OSError as e:
      # Someone else's directory, or the run that owns it pruned the step.
      where = f'not moved: {e.strerror}'
    logging.warning(
      'checkpoint %s of %s is damaged: %s; %s',
      step,
      self.directory,
      fault,
      where,
    )


def steps(directory: str | os.PathLike) -> list[int]:
  """The steps on disk, in order and not verified."""
  directory = pathlib.Path(directory)
  if not directory.is_dir():
    return []
  names = (p.name for p in directory.iterdir() if p.is_dir())
  return sorted(int(n) for n in names if n.isdecimal() and str(int(n)) == n)


def at_shares(shares: Sequence[float], total: int) -> frozenset[int]:
  """The steps that are nearest to these shares of a run, 1 or more."""
  return frozenset(max(1, round(share * total)) for share in shares)


def shapes(
  directory: str | os.PathLike, step: int | None = None
) -> dict[str, tuple[int, ...]]:
  """{'params/decoder/w': shape} of a step on disk; None is the newest.

  Raises:
    ValueError: no step, or one that cannot be read.
  """
  found = steps(directory)
  if not found:
    raise UserError(f'{directory} holds no checkpoint')
  path = pathlib.Path(directory) / str(found[-1] if step is None else step)
  path /= _META
  try:
    leaves = json.loads(path.read_bytes())['leaves']
    return {k: tuple(shape) for k, (shape, _) in leaves.items()}
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
    raise UserError(f'cannot read {path}: {e}') from None


def named(tree: Any) -> dict[str, Any]:
  """{'params/decoder/w': leaf}: what is on disk knows no Python class."""
  flat, _ = jax.tree_util.tree_flatten_with_path(tree)
  named = {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in flat
  }
  if len(named) != len(flat):
    raise UserError("two leaves of the state share a name; no '/' in keys")
  return named


def _is_kept(path: pathlib.Path) -> bool:
  """Whether a step is never deleted; one that cannot be read may be such."""
  try:
    return json.loads((path / _META).read_bytes()).get(_KEEP, False)
  except (OSError, ValueError, AttributeError):
    return True


def _specs(leaves: dict[str, Any]) -> dict[str, list]:
  return {k: [list(v.shape), str(v.dtype)] for k, v in leaves.items()}


def _read_part(path: pathlib.Path, wanted: dict[str, Any]) -> dict[str, Any]:
  """Some of the leaves; Orbax's standard handler reads all or nothing."""
  args = ocp.args.PyTreeRestore(
    item=wanted,
    restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
    partial_restore=True,
  )
  with ocp.PyTreeCheckpointer() as reader:
    return reader.restore(path, args=args)


def _check(
  stored: dict[str, list], wanted: dict, path: pathlib.Path, partial: bool
) -> None:
  """Raises ValueError that names the leaves in which the two differ."""
  asked = _specs(wanted)
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
