"""Checkpoints: asynchronous, verified, restored onto any mesh.

Orbax moves the arrays; this module adds what it lacks. Orbax notices neither
flipped bits nor an empty directory with a step's name, so every step carries a
SHA-256 manifest, and restoring skips a step that does not match it. A step is
written under `_tmp/`, through to the disk, and renamed into place after its
manifest, so a directory `<step>/` is whole or was damaged later; old steps
leave by the same door (which, see `pruning`).

A step that cannot be read (no permission, a server that is away) is not damaged
for that: it is tried again, passed over, and left where it is. Where a run has
gone on from before it, the next save moves it aside.

    DIRECTORY/<step>/{state/, meta.json, MANIFEST.json}
    DIRECTORY/_quarantine/   damaged or passed over, moved aside
    DIRECTORY/_tmp/          being written or deleted; never read

The directory is on a file system that renames atomically (no object store), and
is shared by all processes.
"""

import json
import os
import pathlib
import shutil
from collections.abc import Callable
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
from moe_jax.runs import (
  durable,
  finite,
  leaves as leaves_lib,
  meta as meta_lib,
  pruning,
  quarantine,
)

_STATE = 'state'
_TMP = '_tmp'


class Checkpointer:
  """Saves and restores one run's train state; a context manager.

  Close it: a save that is running when the interpreter exits is lost.

  Attributes:
    directory: pathlib.Path, created by the first save.
    keep: how many newest steps stay on disk, beside those kept for ever.
    passed_over: newer steps on disk than the one that was restored last, as
      they could not be read.
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    keep: int,
    owned: Callable[[], None] = lambda: None,
  ):
    """Opens a directory, which need not be there.

    Args:
      directory: of the steps.
      keep: see the class.
      owned: called before each change of what is there; raises ValueError where
        another process has taken the run over.
    """
    if keep < 1:
      raise UserError(f'keep is {keep}; at least 1 checkpoint must stay')
    self.directory = pathlib.Path(directory).absolute()
    self.keep = keep
    self._orbax = ocp.StandardCheckpointer()
    self._pool = futures.ThreadPoolExecutor(1, 'checkpoint')
    self._pending: futures.Future | None = None
    self._saves = 0
    self._owned = owned
    self.passed_over: frozenset[int] = frozenset()

  def save(
    self,
    step: int,
    state: Any,
    data: dict[str, Any],
    keep: bool = False,
    extra: bool = False,
  ) -> None:
    """Starts saving; every process calls it, with the same arguments.

    Waits for the save before it, then returns as soon as `state` is copied to
    host memory: its buffers may be donated or deleted at once.

    Args:
      step: number of the directory; not on disk yet.
      state: pytree of jax arrays.
      data: small JSON dict (rows trained on, fingerprint, config). The step in
        `data['best']['step']`, where there is one, stays on disk as long as
        this one does.
      keep: for ever. It stands in the step, so that whoever goes on with the
        run, with whatever config, spares it, too.
      extra: it goes when the next one is on disk, as it is none of a schedule.

    Raises:
      ValueError: the step exists, or `data` is not JSON.
      RuntimeError: the save before this one failed.
    """
    self.wait()
    path = self.directory / str(step)
    free = step in self.passed_over or meta_lib.misnamed(path)
    if path.exists() and not free:
      raise UserError(f'step {step} is already saved in {self.directory}')
    leaves = named(state)
    meta = {'step': step, 'data': data, 'leaves': leaves_lib.specs(leaves)}
    meta |= {meta_lib.KEEP: True} if keep else {}
    meta |= {meta_lib.EXTRA: True} if extra else {}
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
    `_quarantine/` with a line in the log, and the one before it is tried. One
    that cannot be read is passed over and stays. A step asked for by number is
    never moved.

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
      if step is None:
        newer = (s for s in self._steps() if s > chosen)
        self.passed_over = frozenset(newer) - passed
      state, data = self._read(chosen, abstract_state, partial)
      fault = finite.fault(named(state))
      if not fault:
        return state, data
      if step is not None:
        raise UserError(f'{self.directory / str(step)}: {fault}')
      passed.add(chosen)
      if jax.process_index() == 0:
        self._quarantine(chosen, fault)

  def go_back(self, last: int) -> None:
    """Deletes steps, until the newest is at most `last`; all processes call it.

    Which one is then the newest follows from the steps of a schedule alone, see
    `pruning.after`; none may be left.
    """
    self.wait()
    if jax.process_index() == 0:
      mine = self._mine()
      for s in reversed(pruning.after(self.directory, mine, self.keep, last)):
        self._delete(s)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices('go back')

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

  def _mine(self) -> list[int]:
    """The steps that the run goes on from, in order."""
    mine = [s for s in self._steps() if s not in self.passed_over]
    return meta_lib.genuine(self.directory, mine)

  def _delete(self, step: int) -> None:
    # A kill during deletion must not leave half a step in sight.
    trash = self.directory / _TMP / f'{step}_old'
    trash.parent.mkdir(exist_ok=True)
    if trash.exists():
      shutil.rmtree(trash)
    self._owned()
    os.rename(self.directory / str(step), trash)
    shutil.rmtree(trash)

  def _commit(self, step: int, tmp: pathlib.Path, meta: str) -> None:
    """In the background: manifest, rename, prune; all by process 0."""
    try:
      # In Orbax this includes a barrier: after it all processes have written.
      self._orbax.wait_until_finished()
      if jax.process_index() != 0:
        return
      (tmp / meta_lib.FILE).write_text(meta)
      manifest.write(tmp)
      durable.sync_tree(tmp)
      self._owned()
      for s in sorted(self.passed_over.intersection(self._steps())):
        where = quarantine.move(self.directory, s, self._owned)
        logging.warning('checkpoint %s of %s %s', s, self.directory, where)
      # One that could not be moved is none to go back to.
      self.passed_over = self.passed_over.intersection(self._steps())
      if copied := meta_lib.misnamed(self.directory / str(step)):
        self._quarantine(step, copied)
      durable.rename(tmp, self.directory / str(step))
      for old in pruning.superfluous(self.directory, self._mine(), self.keep):
        self._delete(old)
    except UserError:
      raise
    except Exception as e:
      raise RuntimeError(
        f'checkpoint of step {step} in {self.directory} was not saved: {e}'
      ) from e

  def _read(
    self, step: int, abstract_state: Any, partial: bool
  ) -> tuple[Any, dict[str, Any]]:
    """`restore`, of a step that is whole."""
    path = self.directory / str(step)
    meta = meta_lib.read(path)
    wanted = named(abstract_state)
    leaves_lib.check(meta['leaves'], wanted, path, partial)
    stored = {k: v for k, v in wanted.items() if v.size}
    read = leaves_lib.read_part if partial else self._orbax.restore
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
      try:
        fault = quarantine.fault(self.directory / str(step))
      except OSError as e:
        return -1, f'{self.directory / str(step)} cannot be read: {e.strerror}'
      if fault:
        return -1, f'{self.directory / str(step)} is damaged: {fault}'
      return step, ''
    unread = {}
    for s in sorted(set(steps) - passed, reverse=True):
      try:
        fault = quarantine.fault(self.directory / str(s))
      except OSError as e:
        unread[s] = e.strerror or str(e)
        continue
      if not fault:
        for n, why in unread.items():
          logging.warning(
            'checkpoint %s of %s cannot be read: %s; passed over, not moved',
            *(n, self.directory, why),
          )
        return s, ''
      self._quarantine(s, fault)
    tried = len(passed.union(steps))
    if not tried:
      return -1, f'{self.directory} holds no checkpoint'
    if unread:
      why = '; '.join(f'{n} cannot be read: {w}' for n, w in unread.items())
      return -1, f'{self.directory} holds no usable checkpoint: {why}'
    return -1, (
      f'{self.directory} holds no usable checkpoint: all {tried} were'
      f' damaged and are in {quarantine.FOLDER}/'
    )

  def _quarantine(self, step: int, fault: str) -> None:
    where = quarantine.move(self.directory, step, self._owned)
    logging.warning(
      'checkpoint %s of %s is damaged: %s; %s',
      *(step, self.directory, fault, where),
    )


def steps(directory: str | os.PathLike) -> list[int]:
  """The steps on disk, in order and not verified.

  Raises:
    OSError: the directory cannot be read.
  """
  try:
    # Not by the folders' own records, which may be out of reach.
    with os.scandir(directory) as found:
      names = [e.name for e in found if e.is_dir()]
  except (FileNotFoundError, NotADirectoryError):
    return []
  return sorted(int(n) for n in names if n.isdecimal() and str(int(n)) == n)


def shapes(
  directory: str | os.PathLike, step: int | None = None
) -> dict[str, tuple[int, ...]]:
  """{'params/decoder/w': shape} of a step on disk; None is the newest.

  Raises:
    ValueError: no step, or one that cannot be read.
  """
  found = meta_lib.genuine(pathlib.Path(directory), steps(directory))
  if not found:
    raise UserError(f'{directory} holds no checkpoint')
  path = pathlib.Path(directory) / str(found[-1] if step is None else step)
  try:
    leaves = meta_lib.read(path)['leaves']
  except (OSError, ValueError) as e:
    raise UserError(f'cannot read {path}: {e}') from None
  return {k: tuple(shape) for k, (shape, _) in leaves.items()}


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
