"""Which steps on disk stay when a new one is there."""

import os
import pathlib
from collections.abc import Sequence

from moe_jax.errors import UserError
from moe_jax.runs import meta as meta_lib


def superfluous(
  directory: pathlib.Path, steps: Sequence[int], keep: int
) -> list[int]:
  """The steps that go.

  The newest one stays, the `keep` newest of those that a schedule wrote, those
  that are kept for ever or cannot be read, and what one of these calls the best
  so far. So what a run can go back to does not depend on when it was stopped.

  Args:
    directory: of the steps.
    steps: that are the run's, in order.
    keep: see `Checkpointer`.
  """
  fates = {s: meta_lib.fate(directory / str(s)) for s in steps}
  stay = {*steps[-1:], *_scheduled(fates)[-keep:]}
  stay |= {s for s, fate in fates.items() if fate is None or fate.kept}
  best = {fates[s].best for s in stay if fates[s]}
  return [s for s in steps if s not in stay | best]


def after(
  directory: pathlib.Path, steps: Sequence[int], keep: int, last: int
) -> list[int]:
  """The steps that go where a run goes back to the newest one up to `last`.

  Only the `keep` newest of a schedule count. Where all of these are later, it
  is the oldest of them; where there is none, the run begins anew.

  Args:
    directory, steps, keep: as of `superfluous`.
    last: a step.
  """
  fates = {s: meta_lib.fate(directory / str(s)) for s in steps}
  found = _scheduled(fates)[-keep:]
  chosen = max((s for s in found if s <= last), default=None)
  if chosen is None:
    chosen = found[0] if found else 0
  return [s for s in steps if s > chosen or not found]


def at_shares(shares: Sequence[float], total: int) -> frozenset[int]:
  """The steps that are nearest to these shares of a run, 1 or more."""
  return frozenset(max(1, round(share * total)) for share in shares)


def best(directory: str | os.PathLike, steps: Sequence[int]) -> int:
  """The step that the newest one calls the best so far.

  Raises:
    ValueError: it calls none so, or that step is not there.
  """
  path = pathlib.Path(directory)
  fates = [meta_lib.fate(path / str(s)) for s in steps]
  found = [fate.best for fate in fates if fate]
  if not found or found[-1] is None:
    raise UserError(
      f'{directory} has no best checkpoint; train.keep_best keeps one'
    )
  if found[-1] not in steps:
    raise UserError(f'{directory} has lost its best checkpoint, {found[-1]}')
  return found[-1]


def _scheduled(fates: dict[int, meta_lib.Fate | None]) -> list[int]:
  return [s for s, fate in fates.items() if fate is None or not fate.extra]
