"""The training run, from config to report; it reads from top to bottom."""

import contextlib
import math
import pathlib
import time
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from moe_jax.analysis import health
from moe_jax.models import factory
from moe_jax.parallel import mesh as mesh_lib, replicas
from moe_jax.planning import counts
from moe_jax.training import (
  checkpoint,
  configs,
  evaluation,
  fresh_rules,
  probes,
  progress,
  rates,
  resume,
  session as session_lib,
  sources,
  start as start_lib,
  state as state_lib,
  step as step_lib,
  stops,
  teacher as teacher_lib,
  trail as trail_lib,
  tuning,
  workdir as workdir_lib,
  writers,
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
      raise ValueError(
        f'{workdir} was trained on other data ({kept["fingerprint"][:12]}, now '
        f'{session.data.fingerprint[:12]}); --restart begins anew'
      )
    start, rows = int(state.step), resume.row(kept)
    if lead:
      workdir_lib.adopt(workdir, config_dict)
      print(f'resumes {workdir} at step {start}')
  else:
    state, start = new(), 0
    rows = 0  # trained on before this start
    state = begin(state) if begin else state

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
  clock, trail = _Clock(), trail_lib.Trail(session)
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
    row = _row(metrics, session, last_row.get('moe/load')) | clock.rates()
    row['learning_rate'] = float(session.schedule(step - 1))
    last_row.update(row)
    return row

  with (
    writers.Writer(workdir, start_step=start, active=lead) as writer,
    contextlib.closing(progress.Progress(c.steps, start, active=lead)) as bar,
  ):
    load = writers.last(workdir, 'moe/load') if start else None
    if load:  # that the first row is compared with
      last_row['moe/load'] = load

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
            },
          )
  if start >= c.steps:  # killed after the last checkpoint, or judged anew
    scores = stops.judge(start, evaluate, state, checkpoints)
  facts = _facts(session, rate, clock) | _last(last_row) | trail.summary()
  # From the file, which a resumed run goes on with.
  best = writers.largest(workdir, 'eval/accuracy')
  if best is not None:
    facts['best/accuracy'] = best
  measured = probes.measure(session, state.params, state.balance)
  return scores | evaluate.floor() | facts | measured


class _Clock:
  """Tokens per second of the steps after the first, without evaluations."""

  def __init__(self):
    self._began = time.monotonic()
    self._since, self._tokens = None, 0.0
    self._recent: tuple[float, float] = (0.0, 0.0)
    self.tokens_per_second = 0.0

  def tick(self, tokens: float) -> None:
    now = time.monotonic()
    if self._since is None:  # the first step compiled
      self._since = now
      self._recent = now, 0.0
      return
    self._tokens += tokens
    self.tokens_per_second = self._tokens / max(now - self._since, 1e-9)

  def rates(self) -> dict[str, float]:
    """Tokens per second since the last call, and seconds since the start."""
    now = time.monotonic()
    out = {'seconds': now - self._began}
    if self._since is not None and self._tokens > self._recent[1]:
      elapsed = max(now - self._recent[0], 1e-9)
      out['tokens_per_second'] = (self._tokens - self._recent[1]) / elapsed
      self._recent = now, self._tokens
    return out

  @contextlib.contextmanager
  def paused(self):
    """The time inside counts as no step's."""
    began = time.monotonic()
    yield
    spent = time.monotonic() - began
    if self._since is not None:
      self._since += spent
      self._recent = self._recent[0] + spent, self._recent[1]

  @property
  def seconds(self) -> float:
    return time.monotonic() - self._began


def _row(metrics, session, last_load) -> dict[str, Any]:
  """A step's arrays as the names and numbers that are logged."""
  row = {
    'loss': float(metrics['loss']),
    'total_loss': float(metrics['total_loss']),
    'bits_per_token': float(metrics['loss']) / math.log(2),
    'grad_norm': float(metrics['grad_norm']),
  }
  if 'distill_loss' in metrics:
    row['distill_loss'] = float(metrics['distill_loss'])
  if 'load' not in metrics:
    return row
  load_NE = metrics['load'].astype(np.float64)
  share_NE = load_NE / np.maximum(load_NE.sum(-1, keepdims=True), 1)
  row |= {
    'moe/dropped': trail_lib.dropped(metrics['cause']),
    'moe/load_max': float((share_NE.max(-1) * share_NE.shape[-1]).mean()),
    'moe/load': share_NE.tolist(),
    'moe/layers': session_lib.layer_numbers(session.model),
    'router/entropy': float(metrics['entropy'].mean()),
  }
  for name, value in health.rates(metrics, last_load).items():
    row[f'health/{name}'] = value
  for name, value in metrics['balance'].items():
    row[f'balance/{name}'] = float(value.mean())
  return row


def _facts(session, rate: float, clock: _Clock) -> dict[str, Any]:
  leaves = session.leaves()
  flops = session.flops_per_token()
  return {
    'parameters': counts.parameters(leaves),
    'trained_parameters': tuning.size(session.layout.params, session.trained),
    'active_parameters': round(
      counts.active_parameters(leaves, session.expert_share())
    ),
    'flops_per_token': flops,
    'tokens_per_second': clock.tokens_per_second,
    'matmul_flops_per_second': rate,
    'mfu': clock.tokens_per_second * flops / rate,
    'seconds': clock.seconds,
    'steps': session.config.train.steps,
    'jax': jax.__version__,
    'platform': jax.devices()[0].platform,
    'devices': jax.device_count(),
    'mesh': mesh_lib.describe(dict(session.mesh.shape)),
  }


def _last(row: dict[str, Any]) -> dict[str, Any]:
  """What the summary takes from the last step's metrics."""
  keys = ('loss', 'distill_loss', 'moe/dropped', 'moe/load_max')
  out = {k: row[k] for k in keys if k in row}
  # A dense run that was resumed has a load of None.
  load = row.get('moe/load') or ()
  for layer, share in zip(row.get('moe/layers', ()), load):
    out[f'moe/layer_{layer}/load_max'] = max(share) * len(share)
  return out
