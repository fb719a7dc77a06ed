"""What becomes of a run whose step was bad: it is run again, then judged.

The state before the step was given away to it. So the run goes back to its
newest checkpoint, or its beginning, and comes to the step again: no memory is
held for that, and the price is the steps since then, once. As all draws follow
from the step, a machine that computes right gives the same bits again: then it
was the data, or the optimisation, and the run ends, or rolls back. Where the
step is good this time, the machine was wrong the first time (or has operations
that are not deterministic); nothing of that is in the state, and the run goes
on, a few times at most.

As Megatron-LM's rerun state machine (`megatron/core/rerun_state_machine.py`)
does; there the step alone runs again, on data that were kept.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from moe_jax.errors import MachineError, NotFiniteError, SpikedError
from moe_jax.training import (
  bad_batches,
  nonfinite,
  run as run_lib,
  spikes,
  state as state_lib,
  stops,
)

# Steps of one start that were bad once, and good when run again.
_MOST = 3


class Trials:
  """Of one start of a run."""

  def __init__(
    self,
    run: run_lib.Run,
    begin: Callable[[], run_lib.Begun],
    debug: bool = False,
  ):
    """Before the first step.

    Args:
      run: whose steps are tried.
      begin: -> its newest checkpoint, or its beginning.
      debug: say where a value that is not finite comes from.
    """
    self._run, self._begin, self._debug = run, begin, debug
    self._policy = spikes.policy(run.session.config)
    self._awaited: stops.BadStepError | None = None
    self._faults = 0
    self._start = begin()

  @property
  def start(self) -> run_lib.Begun:
    """Where the run takes up."""
    return self._start

  def take(self) -> state_lib.TrainState:
    """The state that it takes up with; once, as a step is given its buffers."""
    state = self._start.state
    self._start = dataclasses.replace(self._start, state=None)
    return state

  def look(self, step: int, state: Any, batch: Any) -> None:
    """Says what is not finite in a step that is about to run again."""
    found = self._awaited
    if self._debug and found and found.step == step and not found.spike:
      self._say(nonfinite.report(self._run, step, state, batch))

  def passed(self, step: int) -> None:
    """Tells that this step and those before it were good.

    Raises:
      MachineError: one too many of them had been bad before.
    """
    if self._awaited is not None and step >= self._awaited.step:
      awaited, self._awaited = self._awaited, None
      self._count(awaited, 'it was good when run again')

  def bad(self, found: stops.BadStepError) -> None:
    """Moves `start` to where the run goes on.

    Args:
      found: without the frames that raised it, which hold a state.

    Raises:
      NotFiniteError, SpikedError: it ends here; the message names the step, and
        the checkpoint to go back to.
    """
    before, self._awaited = self._awaited, None
    if before is None or before.step != found.step:
      if before is not None:
        self._count(before, f'step {found.step} was bad when it ran again')
      self._say(f'{found.what} at step {found.step}, which is run again')
      self._run.checkpoints.wait()  # for one that is still being written
      row = self._start.row(found.step - 1, self._run.session)
      bad_batches.save(self._run, found.step, row, found.what)
      self._awaited = found
      start = self._begin()
      if start.step == self._start.step:
        # Since a rollback nothing was saved: the checkpoint knows of none.
        start = dataclasses.replace(self._start, state=start.state)
      self._start = start
      return
    if found.seen == before.seen:
      verdict = 'the same bits when run again: data or optimisation'
    else:
      verdict = (
        f'bad again, with other bits (before, {before.what}): the machine, or'
        ' operations that are not deterministic'
      )
    if found.spike:
      self._roll_back(found, verdict)
    else:
      raise NotFiniteError(self._end(found, verdict))

  def _roll_back(self, found: stops.BadStepError, verdict: str) -> None:
    p, session = self._policy, self._run.session
    done = found.rollbacks
    if done >= p.most:
      verdict += f'; {done} rollbacks were all (train.on_spike)'
      raise SpikedError(self._end(found, verdict))
    size = session.config.train.batch_size
    after = self._start.row(found.step, session)
    self._run.checkpoints.go_back(found.last)
    start = self._begin()
    # From the checkpoint on, by the rows that the run had after it.
    since = found.step - start.step
    first = after - since * size
    rows = first + max(p.batches, since) * size
    counted = {'losses': [], **(start.kept.get('spikes') or {})}
    counted['rollbacks'] = done + 1
    kept = start.kept | {'spikes': counted}
    self._start = dataclasses.replace(start, rows=rows, kept=kept)
    self._say(
      f'{found.what} at step {found.step}; {verdict}; back to step'
      f' {start.step}, past rows {first} to {rows - 1} (rollback {done + 1} of'
      f' {p.most})'
    )

  def _count(self, before: stops.BadStepError, why: str) -> None:
    self._faults += 1
    verdict = (
      f'{before.what} at step {before.step}, but {why}: the machine, or'
      ' operations that are not deterministic, not the data'
    )
    if self._faults > _MOST:
      raise MachineError(
        f'{verdict}; the {self._faults}. time; '
        f'{stops.where(before.step - 1, self._run.checkpoints)}'
      )
    self._say(verdict)

  def _end(self, found: stops.BadStepError, verdict: str) -> str:
    kept = stops.where(found.last, self._run.checkpoints)
    return f'{found.what} at step {found.step}; {verdict}; {kept}'

  def _say(self, line: str) -> None:
    if self._run.lead:
      print(line, flush=True)
