"""The training run, from config to report; it reads from top to bottom."""

import contextlib
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import multihost_utils

from moe_jax.parallel import replicas
from moe_jax.runs import (
  checkpoint,
  configs,
  progress,
  pruning,
  resume,
  starts,
  workdir as workdir_lib,
  writers,
)
from moe_jax.training import (
  bests,
  log as log_lib,
  probes,
  run as run_lib,
  session as session_lib,
  sources,
  start as start_lib,
  stopping,
  stops,
  teacher as teacher_lib,
  trials as trials_lib,
  watchdog as watchdog_lib,
)


def train(
  config,
  workdir: str,
  *,
  restart: bool = False,
  take_over: bool = False,
  allow: tuple[str, ...] = (),
  allow_download: bool = False,
  debug_nonfinite: bool = False,
  session: session_lib.Session | None = None,
) -> dict[str, Any]:
  """Trains, evaluates and writes `workdir`; resumes what is there.

  Args:
    config: a ConfigDict.
    workdir: for all that is written.
    restart: move an earlier run in `workdir` aside.
    take_over: take the lock that a dead run on another host left.
    allow: config fields that may differ from the earlier run's.
    allow_download: lets TFDS download.
    debug_nonfinite: where a step is not finite, say which value was the first,
      and in which layer.
    session: of a config that differs in its seed, and in the runs that it
      begins with or learns from: its data and compiled programs are used again.

  Returns:
    The summary, as in `summary.json` of process 0.

  Raises:
    ValueError: config, data or workdir do not fit; nothing was written.
    FloatingPointError: loss, state or evaluation are not finite, and again
      when they were run again, or the loss rose too often; names step and
      checkpoint.
    MachineError: steps were other when they were run again, too often.
    StoppedError: a signal, or `train.max_minutes`; what was done is saved.
    RuntimeError: from `replicas.check`.
  """
  lead, config_dict = jax.process_index() == 0, configs.to_dict(config)
  stop = stopping.Stop(config.train.max_minutes)
  # A wrong field costs no data, and no workdir.
  session = session or session_lib.plan(config)
  workdir_lib.check_place(workdir)  # process 0 alone prepares it
  probes.check(config)
  done = None if restart else resume.finished(workdir, config_dict)
  _find(config, session, workdir, allow_download, restart, done)
  fresh = lead and not workdir_lib.prepare(
    workdir,
    config_dict,
    restart=restart,
    allow=allow,
    take_over=take_over,
  )
  if lead:
    print('data: reading or building the corpus ...', flush=True)
  try:
    again = not (restart or done)
    earlier = resume.check(workdir, config_dict) if again else {}
    if session.data is None:
      session = session.open(workdir, allow_download)
    session = session.with_config(config)
    begin = teacher = None
    if not done:
      begin = start_lib.load(session, workdir)
      # Most runs that share a session have the same teacher.
      name, load = config.train.teacher, lambda: teacher_lib.load(session)
      teacher = session.program(f'teacher {name}', load) if name else None
  except Exception:
    (workdir_lib.withdraw if fresh else workdir_lib.release)(workdir)
    raise
  multihost_utils.sync_global_devices('data')
  if lead:
    print(session.data.describe(), flush=True)
  if done:
    told = resume.damage(workdir)
    print(f'{workdir} is finished; --restart begins anew{told}')
    workdir_lib.release(workdir)
    return done
  path = pathlib.Path(workdir)
  owned = functools.partial(workdir_lib.check, workdir)
  with (
    contextlib.ExitStack() as leaving,
    checkpoint.Checkpointer(
      path / 'checkpoints', config.train.keep, owned
    ) as checkpoints,
  ):
    leaving.callback(workdir_lib.release, workdir)
    run = run_lib.Run(session, workdir, config_dict, checkpoints, teacher)
    start = functools.partial(run.start, begin)
    summary = _train(run, start, stop, debug_nonfinite)
    # Of a run that was over, only what an evaluation gives is new.
    summary |= earlier
    if lead:
      owned()
      writers.write_json(path / 'summary.json', summary)
  return summary


def _find(config, session, workdir, allow_download, restart, done) -> None:
  """Raises ValueError where data or other runs are missing, at a glance."""
  if session.data is None:
    session.problem.find(allow_download)
  if not done:
    sources.find(config, teacher_lib.FIELD)
    if restart or not start_lib.goes_on(workdir):
      sources.find(config, start_lib.FIELD)


def _train(
  run: run_lib.Run,
  begin: Callable[[], run_lib.Begun],
  stop: stopping.Stop,
  debug: bool,
) -> dict[str, Any]:
  """To the last step, with what bad steps are run again; the summary."""
  trials = trials_lib.Trials(run, begin, debug)
  if run.lead and trials.start.step < run.session.config.train.steps:
    starts.count(run.workdir)
  minutes = run.session.config.train.max_step_minutes
  with watchdog_lib.Watchdog(minutes, trials.start.step) as watchdog:
    while True:
      try:
        return _steps(run, trials, stop, watchdog)
      except stops.BadStepError as e:
        # The frames of its traceback hold a state.
        found = e.with_traceback(None)
      trials.bad(found)


def _steps(
  run: run_lib.Run,
  trials: trials_lib.Trials,
  stop: stopping.Stop,
  watchdog: watchdog_lib.Watchdog,
) -> dict[str, Any]:
  """From the first or the restored step to the last; returns the summary."""
  s, c, lead = run.session, run.session.config.train, run.lead
  step_fn, evaluate = run.train_step(), run.evaluator()
  start = trials.start
  batches, state = run.batches(start.rows), trials.take()
  rate = run.matmul_rate()
  log = log_lib.Log(run, start, watchdog)
  best = bests.Best(c.keep_best, s.problem, start.kept.get('best'))
  keeps = pruning.at_shares(c.keep_at, c.steps)
  watched = {v.key: v.text for v in s.problem.shown if v.best}
  with (
    writers.Writer(
      run.workdir,
      start_step=start.step,
      active=lead,
      owned=functools.partial(workdir_lib.check, run.workdir),
    ) as writer,
    stop,
    contextlib.closing(
      progress.Progress(c.steps, start.step, scores=watched, active=lead)
    ) as bar,
  ):
    log.opened(writer, bar)
    for step in range(start.step + 1, c.steps + 1):
      batch = s.put(next(batches))
      trials.look(step, state, batch)
      state, metrics = step_fn(state, batch)
      log.step(step, metrics)
      trials.passed(step - 1)
      if _every(c.check_replicas_every, step):
        with log.clock.paused():
          replicas.check((state, metrics), step)
      last = step == c.steps
      kept = step in keeps
      due = last or kept or _every(c.checkpoint_every, step)
      ends = stop.after(step) and not last
      judges = last or _every(c.eval_every, step)
      if not (due or ends or judges):
        continue
      # A state is saved or judged only once it is known to be good, and a
      # step's line is written before its checkpoint.
      row, better = log.fetch(), False
      with log.clock.paused():
        stops.check_state(step, state)
        if judges:
          watchdog.alive(step, judges=True)
          scores = stops.judge(step, evaluate, state)
          better = best.add(step, scores)
          bounds = ('_low', '_high')
          row |= {k: v for k, v in scores.items() if not k.endswith(bounds)}
        trials.passed(step)
        log.report(step, row)
        if due or ends or better:
          writer.sync()
          known = log.kept(step) | {'best': best.state()}
          run.checkpoints.save(step, state, known, kept, extra=not due)
        if ends:
          run.checkpoints.wait()
          raise stop.error(step)
      watchdog.alive(step)
  watchdog.alive(c.steps, judges=True)
  if start.step >= c.steps:  # killed after the last checkpoint, or judged anew
    scores = stops.judge(start.step, evaluate, state)
  summary = scores | evaluate.floor() | log.summary(rate) | best.summary()
  return summary | probes.measure(s, state.params, state.balance)


def _every(period: int, step: int) -> bool:
  """Whether it is time again; a period of 0 is never."""
  return bool(period) and step % period == 0
