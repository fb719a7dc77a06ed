"""The training run, from config to report; it reads from top to bottom."""

import contextlib
import functools
import pathlib
from typing import Any

import jax
from jax.experimental import multihost_utils

from moe_jax.parallel import replicas
from moe_jax.runs import (
  checkpoint,
  configs,
  progress,
  resume,
  workdir as workdir_lib,
  writers,
)
from moe_jax.training import (
  log as log_lib,
  probes,
  run as run_lib,
  session as session_lib,
  sources,
  start as start_lib,
  stopping,
  stops,
  teacher as teacher_lib,
)


def train(
  config,
  workdir: str,
  *,
  restart: bool = False,
  take_over: bool = False,
  allow: tuple[str, ...] = (),
  allow_download: bool = False,
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
    session: of a config that differs in its seed alone: its data and compiled
      programs are used again.

  Returns:
    The summary, as in `summary.json` of process 0.

  Raises:
    ValueError: config, data or workdir do not fit; nothing was written.
    FloatingPointError: loss, state or evaluation are not finite; names step
      and checkpoint.
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
    session = session.with_seed(config.seed)
    begin = teacher = None
    if not done:
      begin = start_lib.load(session, workdir)
      # The runs that share a session have the same teacher.
      load = lambda: teacher_lib.load(session)
      teacher = session.program('teacher', load)
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
    summary = _train(run, run.start(begin), stop)
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
  run: run_lib.Run, start: run_lib.Begun, stop: stopping.Stop
) -> dict[str, Any]:
  """From the first or the restored step to the last; returns the summary."""
  s, c, lead = run.session, run.session.config.train, run.lead
  step_fn, evaluate = run.train_step(), run.evaluator()
  batches, state = run.batches(start.rows), start.state
  rate = run.matmul_rate()
  log = log_lib.Log(run, start)
  keeps = checkpoint.at_shares(c.keep_at, c.steps)
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
      state, metrics = step_fn(state, s.put(next(batches)))
      log.step(step, metrics)
      if _every(c.check_replicas_every, step):
        with log.clock.paused():
          replicas.check((state, metrics), step)
      last = step == c.steps
      kept = step in keeps
      ends = stop.after(step) and not last
      saves = last or kept or ends or _every(c.checkpoint_every, step)
      judges = last or _every(c.eval_every, step)
      if not (saves or judges):
        continue
      # A state is saved or judged only once it is known to be good, and a
      # step's line is written before its checkpoint.
      row = log.fetch()
      with log.clock.paused():
        stops.check_state(step, state, run.checkpoints)
        if judges:
          scores = stops.judge(step, evaluate, state, run.checkpoints)
          bounds = ('_low', '_high')
          row |= {k: v for k, v in scores.items() if not k.endswith(bounds)}
        log.report(step, row)
        if saves:
          writer.sync()
          run.checkpoints.save(step, state, log.kept(step), kept)
        if ends:
          run.checkpoints.wait()
          raise stop.error(step)
  if start.step >= c.steps:  # killed after the last checkpoint, or judged anew
    scores = stops.judge(start.step, evaluate, state, run.checkpoints)
  summary = scores | evaluate.floor() | log.summary(rate)
  return summary | probes.measure(s, state.params, state.balance)


def _every(period: int, step: int) -> bool:
  """Whether it is time again; a period of 0 is never."""
  return bool(period) and step % period == 0
