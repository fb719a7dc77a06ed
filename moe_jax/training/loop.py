"""The training run, from config to report; it reads from top to bottom."""

import contextlib
import pathlib
from typing import Any

import jax
from jax.experimental import multihost_utils

from moe_jax.errors import UserError
from moe_jax.models import factory
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
  clock as clock_lib,
  evaluation,
  facts,
  fresh_rules,
  probes,
  rates,
  session as session_lib,
  sources,
  start as start_lib,
  state as state_lib,
  step as step_lib,
  stops,
  teacher as teacher_lib,
  trail as trail_lib,
)


def train(
  config,
  workdir: str,
  *,
  restart: bool = False,
  allow: tuple[str, ...] = (),
  allow_download: bool = False,
  session: session_lib.Session | None = None,
) -> dict[str, Any]:
  """Trains, evaluates and writes `workdir`; resumes what is there.

  Args:
    config: a ConfigDict.
    workdir: for all that is written.
    restart: move an earlier run in `workdir` aside.
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
    RuntimeError: from `replicas.check`.
  """
  lead = jax.process_index() == 0
  config_dict = configs.to_dict(config)
  session_lib.plan(config)  # a wrong field costs no data, and no workdir
  probes.check(config)
  done = None if restart else resume.finished(workdir, config_dict)
  if not done:
    sources.find(config, teacher_lib.FIELD)
    if restart or not start_lib.goes_on(workdir):
      sources.find(config, start_lib.FIELD)
  fresh = lead and not workdir_lib.prepare(
    workdir, config_dict, restart=restart, allow=allow
  )
  if lead:
    print('data: reading or building the corpus ...', flush=True)
  try:
    earlier = {} if restart else resume.check(workdir, config_dict)
    if session is None:
      session = session_lib.make(config, workdir, allow_download=allow_download)
    session = session.with_seed(config.seed)
    start = teacher = None
    if not done:
      start = start_lib.load(session, workdir)
      # The runs that share a session have the same teacher.
      load = lambda: teacher_lib.load(session)
      teacher = session.program('teacher', load)
  except Exception:
    withdraw = workdir_lib.withdraw if fresh else workdir_lib.release
    withdraw(workdir)
    raise
  multihost_utils.sync_global_devices('data')
  if lead:
    print(session.data.describe(), flush=True)

  if done:
    print(f'{workdir} is finished; --restart begins anew')
    workdir_lib.release(workdir)
    return done

  path = pathlib.Path(workdir)
  with (
    contextlib.ExitStack() as leaving,
    checkpoint.Checkpointer(
      path / 'checkpoints', config.train.keep
    ) as checkpoints,
  ):
    leaving.callback(workdir_lib.release, workdir)
    summary = _train(
      session, workdir, config_dict, checkpoints, start, teacher, lead
    )
    # Of a run that was over, only what an evaluation gives is new.
    summary |= earlier
    if lead:
      writers.write_json(path / 'summary.json', summary)
  return summary


def _train(
  session, workdir, config_dict, checkpoints, begin, teacher, lead
) -> dict[str, Any]:
  """From the first or the restored step to the last; returns the summary."""
  config = session.config
  # Shapes first, then where they live, then the numbers.
  abstract = session.abstract_state
  shardings = jax.tree.map(lambda v: v.sharding, abstract)
  initialize = session.program(
    'init',
    lambda: state_lib.initializer(
      session.model,
      session.tx,
      session_lib.dummy(config, session.mesh),
      shardings,
    ),
  )
  new = lambda: initialize(jax.random.key(config.seed))
  if checkpoints.latest() is not None:
    say = print if lead else lambda line: None
    state, kept = fresh_rules.restore(checkpoints, abstract, new, say)
    if kept['fingerprint'] != session.data.fingerprint:
      raise UserError(
        f'{workdir} was trained on other data ({kept["fingerprint"][:12]}, now '
        f'{session.data.fingerprint[:12]}); --restart begins anew'
      )
    start, rows = int(state.step), resume.row(kept)
    if lead:
      print(f'resumes {workdir} at step {start}')
  else:
    state, start = new(), 0
    rows, kept = 0, {}  # rows trained on before this start
    state = begin(state) if begin else state
  if lead:  # of a run that died before its first checkpoint, too
    workdir_lib.adopt(workdir, config_dict)

  c = config.train
  taught = (teacher.variables,) if teacher else ()
  train_step = session.program(
    'train',
    lambda: jax.jit(
      step_lib.make_train_step(
        session.model,
        session.tx,
        seed=config.seed,
        accumulate=c.accumulate,
        z_loss=c.z_loss,
        over_layers=c.balance_over_layers,
        trained=session.trained,
        teacher=teacher and teacher.model,
        distill=c.distill,
      ),
      # Unpinned, the state comes back with other shardings than it went in,
      # and step two compiles again.
      in_shardings=(
        shardings,
        session.batch_sharding,
        *(None for _ in ('key', *taught)),
      ),
      out_shardings=(shardings, None),
      donate_argnums=0,
    ),
  )
  key = jax.random.key(config.seed)
  evaluate = session.program('evaluate', lambda: evaluation.Evaluator(session))
  batches = session.data.train(
    seed=config.seed,
    batch_size=c.batch_size,
    first_row=rows,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  rate = session.program(
    'rate',
    lambda: rates.matmul_flops_per_second(factory.DTYPES[config.model.dtype]),
  )
  clock, trail = clock_lib.Clock(kept.get('clock')), trail_lib.Trail(session)
  trail.restore(start, kept.get('trail'))
  pending = None  # metrics of the step before: fetched while this one runs
  last_row: dict[str, Any] = {}

  def fetch(step, arrays):
    """Waits for a step's metrics and checks them; a row at log steps."""
    metrics = jax.device_get(arrays)
    clock.tick(float(metrics['tokens']))
    stops.check_metrics(step, metrics, checkpoints)
    trail.add(step, metrics)
    if step > 1 and step % c.log_every and step < c.steps:
      return {}
    row = facts.row(metrics, session, last_row.get('moe/load'))
    row |= clock.rates()
    row['learning_rate'] = float(session.schedule(step - 1))
    last_row.update(row)
    return row

  with (
    writers.Writer(workdir, start_step=start, active=lead) as writer,
    contextlib.closing(progress.Progress(c.steps, start, active=lead)) as bar,
  ):
    if start:
      last_row.update(writers.last(workdir, 'loss'))

    def report(step, row):
      bar.update(step, row)
      if row:
        writer.write(step, row)

    for step in range(start + 1, c.steps + 1):
      batch = session.put(next(batches))
      state, metrics = train_step(state, batch, key, *taught)
      if pending is not None:
        report(pending[0], fetch(*pending))
      pending = step, metrics
      if c.check_replicas_every and step % c.check_replicas_every == 0:
        with clock.paused():
          replicas.check((state, metrics), step)
      last = step == c.steps
      saves = last or (c.checkpoint_every and step % c.checkpoint_every == 0)
      judges = last or (c.eval_every and step % c.eval_every == 0)
      if not (saves or judges):
        continue
      # A state is saved or judged only once it is known to be good, and a
      # step's line is written before its checkpoint.
      row, pending = fetch(*pending), None
      with clock.paused():
        stops.check_state(step, state, checkpoints)
        if judges:
          scores = stops.judge(step, evaluate, state, checkpoints)
          bounds = ('_low', '_high')
          row |= {k: v for k, v in scores.items() if not k.endswith(bounds)}
        report(step, row)
        if saves:
          checkpoints.save(
            step,
            state,
            {
              'rows': rows + (step - start) * c.batch_size,
              'fingerprint': session.data.fingerprint,
              'config': config_dict,
              'trail': trail.state(),
              'clock': clock.state(),
            },
          )
  if start >= c.steps:  # killed after the last checkpoint, or judged anew
    scores = stops.judge(start, evaluate, state, checkpoints)
  summary = scores | evaluate.floor() | facts.of_run(session, rate, clock)
  summary |= facts.of_last(last_row) | trail.summary()
  if lead and 'not_known' in summary:
    print(f'not known: {summary["not_known"]}', flush=True)
  # From the file, which a resumed run goes on with.
  best = writers.largest(workdir, 'eval/accuracy')
  if best is not None:
    summary['best/accuracy'] = best
  return summary | probes.measure(session, state.params, state.balance)
