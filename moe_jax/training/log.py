"""What a run tells while it goes on, and keeps: rows, means, speed."""

from typing import Any

import jax

from moe_jax.errors import NotFiniteError
from moe_jax.runs import progress, writers
from moe_jax.training import (
  bad_batches,
  clock as clock_lib,
  facts,
  run as run_lib,
  skips as skips_lib,
  spikes as spikes_lib,
  stops,
  trail as trail_lib,
  watchdog as watchdog_lib,
)


class Log:
  """What is known of the steps: rows, means, speed.

  A step's metrics are fetched while the next one runs.

  Attributes:
    clock: of the run.
  """

  def __init__(
    self,
    run: run_lib.Run,
    start: run_lib.Begun,
    watchdog: watchdog_lib.Watchdog,
  ):
    self._run, self._start, self._watchdog = run, start, watchdog
    self.clock = clock_lib.Clock(start.kept.get('clock'))
    config = run.session.config
    most = config.train.max_skips
    self._skips = skips_lib.Skips(most, start.kept.get('skips'))
    policy = spikes_lib.policy(config)
    self._spikes = spikes_lib.Spikes(policy, start.kept.get('spikes'))
    self._trail = trail_lib.Trail(run.session)
    self._trail.restore(start.step, start.kept.get('trail'))
    self._pending: tuple[int, Any] | None = None
    self._last_row: dict[str, Any] = {}

  def opened(self, writer: writers.Writer, bar: progress.Progress) -> None:
    """Where rows go; the writer has cut what is after the start."""
    self._writer, self._bar = writer, bar
    if self._start.step:
      self._last_row.update(writers.last(self._run.workdir, 'loss'))

  def step(self, step: int, metrics: Any) -> None:
    """Takes a step's arrays, and reports the step before."""
    before, self._pending = self._pending, (step, metrics)
    if before is not None:
      self.report(before[0], self._row(*before))

  def fetch(self) -> dict[str, Any]:
    """The row of the step taken last, which is the caller's to report."""
    step, metrics = self._pending
    self._pending = None
    return self._row(step, metrics)

  def report(self, step: int, row: dict[str, Any]) -> None:
    self._bar.update(step, row)
    if row:
      self._writer.write(step, row)

  def _row(self, step: int, arrays: Any) -> dict[str, Any]:
    """Waits for a step's metrics and checks them; {} between log steps."""
    session, last = self._run.session, self._last_row
    metrics = jax.device_get(arrays)
    self._watchdog.alive(step)
    self.clock.tick(float(metrics['tokens']))
    if skips_lib.skipped(metrics):
      self._skip(step, metrics)
    else:
      self._skips.good()
      stops.check_metrics(step, metrics)
      spike = self._spikes.add(float(metrics['loss']))
      if spike:
        seen, before = stops.bits(metrics), self._spikes.rollbacks
        raise stops.BadStepError(step, spike, step - 2, seen, before)
      self._trail.add(step, metrics)
    c = session.config.train
    if step > 1 and step % c.log_every and step < c.steps:
      return {}
    row = facts.row(metrics, session, last.get('moe/load'))
    row |= self.clock.rates() | self._counts()
    row['learning_rate'] = float(session.schedule(step - 1))
    last.update(row)
    return row

  def _skip(self, step: int, metrics: Any) -> None:
    """A step that was passed over; one too many ends the run."""
    fault = self._skips.add(metrics)
    why = fault or 'not finite, and passed over'
    row = self._start.row(step - 1, self._run.session)
    bad_batches.save(self._run, step, row, why)
    if fault:
      kept = stops.where(step - 1, self._run.checkpoints)
      raise NotFiniteError(f'{fault} at step {step}; {kept}')
    self._trail.skip(step)

  def kept(self, step: int) -> dict[str, Any]:
    """What a checkpoint has beside its arrays."""
    session = self._run.session
    return {
      'rows': self._start.row(step, session),
      'fingerprint': session.data.fingerprint,
      'config': self._run.config,
      'trail': self._trail.state(),
      'clock': self.clock.state(),
      'skips': self._skips.state(),
      'spikes': self._spikes.state(),
    }

  def _counts(self) -> dict[str, int]:
    """Of a run that may, how many steps it passed over, and its rollbacks."""
    may = self._run.session.config.train.on_nonfinite == 'skip'
    skipped = {'skipped': self._skips.total} if may else {}
    return skipped | self._spikes.counted()

  def summary(self, rate: float) -> dict[str, Any]:
    """Of the run so far, less what evaluations give."""
    run, problem = self._run, self._run.session.problem
    out = facts.of_run(run.session, rate, self.clock)
    out |= facts.of_last(self._last_row) | self._trail.summary()
    out |= problem.described() | self._counts()
    if run.lead and 'not_known' in out:
      print(f'not known: {out["not_known"]}', flush=True)
    for score in problem.shown:
      # From the file, which a resumed run goes on with.
      found = writers.values(run.workdir, score.key) if score.best else ()
      if found:
        out[score.best] = score.choose(found)
    return out
