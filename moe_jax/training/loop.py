"""The training run, from config to report; it reads from top to bottom."""

import json
import math
import pathlib
import time
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from moe_jax.models import factory
from moe_jax.parallel import mesh as mesh_lib
from moe_jax.planning import counts
from moe_jax.training import (
  checkpoint,
  configs,
  evaluation,
  progress,
  rates,
  session as session_lib,
  state as state_lib,
  step as step_lib,
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
) -> dict[str, Any]:
  """Trains, evaluates and writes `workdir`; resumes what is there.

  Args:
    config: a ConfigDict.
    workdir: for all that is written.
    restart: move an earlier run in `workdir` aside.
    allow: config fields that may differ from the earlier run's.
    allow_download: lets TFDS download.

  Returns:
    The summary, as in `summary.json` of process 0.

  Raises:
    ValueError: config, data or workdir do not fit; nothing was written.
    FloatingPointError: the loss is not finite; names step and checkpoint.
  """
  lead = jax.process_index() == 0
  session = session_lib.make(
    config, workdir, allow_download=allow_download
  )
  config_dict = configs.to_dict(config)
  if lead:
    workdir_lib.prepare(workdir, config_dict, restart=restart, allow=allow)
  multihost_utils.sync_global_devices('workdir')

  summary_path = pathlib.Path(workdir) / 'summary.json'
  if summary_path.exists():
    done = json.loads(summary_path.read_text())
    if done['steps'] == config.train.steps:
      logging.info('%s is finished; --restart begins anew', workdir)
      return done

  # Shapes first, then where they live, then the numbers.
  abstract = session.abstract_state
  shardings = jax.tree.map(lambda v: v.sharding, abstract)
  checkpoints = checkpoint.Checkpointer(
    pathlib.Path(workdir) / 'checkpoints', config.train.keep
  )
  if checkpoints.latest() is not None:
    state, kept = checkpoints.restore(abstract)
    if kept['fingerprint'] != session.data.fingerprint:
      raise ValueError(
        f'{workdir} was trained on other data ({kept["fingerprint"][:12]}, now '
        f'{session.data.fingerprint[:12]}); --restart begins anew'
      )
    start = kept['data_step']
    logging.info('resumed at step %d', start)
  else:
    state = state_lib.init(
      session.model,
      session.tx,
      session_lib.dummy(config),
      config.seed,
      shardings,
    )
    start = 0

  c = config.train
  rules_ = ()
  if session_lib.layer_numbers(session.model):
    rules_ = factory.balance_rules(config)
  train_step = jax.jit(
    step_lib.make_train_step(
      session.model,
      session.tx,
      rules_,
      seed=config.seed,
      accumulate=c.accumulate,
      z_loss=c.z_loss,
      over_layers=c.balance_over_layers,
    ),
    # Unpinned, the state comes back with other shardings than it went in, and
    # step two compiles again.
    in_shardings=(shardings, session.batch_sharding),
    out_shardings=(shardings, None),
    donate_argnums=0,
  )
  evaluate = evaluation.Evaluator(session)
  batches = session.data.train(
    seed=config.seed,
    batch_size=c.batch_size,
    start_step=start,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  rate = rates.matmul_flops_per_second(factory.DTYPES[config.model.dtype])
  writer = writers.Writer(workdir, start_step=start, active=lead)
  bar = progress.Progress(c.steps, start, active=lead)
  clock = _Clock(start)
  pending = None  # metrics of the step before: fetched while this one runs
  last_row: dict[str, Any] = {}

  def finish(done):
    """Fetches a step's metrics, checks them, and logs at log steps."""
    step, arrays = done
    metrics = jax.device_get(arrays)
    clock.tick(step, float(metrics['tokens']))
    _check_finite(step, metrics, checkpoints)
    if step == start + 1 or step % c.log_every == 0 or step == c.steps:
      row = _row(metrics, session) | clock.rates()
      row['learning_rate'] = float(session.schedule(step - 1))
      last_row.update(row)
      if step % c.log_every == 0 or step == c.steps:
        return row
      bar.update(step, row)
    else:
      bar.update(step)
    return None

  for step in range(start + 1, c.steps + 1):
    batch = session.put(next(batches))
    state, metrics = train_step(state, batch)
    if pending is not None:
      row = finish(pending)
      if row is not None:
        writer.write(pending[0], row)
        bar.update(pending[0], row)
    pending = step, metrics
    saves = step % c.checkpoint_every == 0 or step == c.steps
    evaluates = step == c.steps or (c.eval_every and step % c.eval_every == 0)
    if saves or evaluates:
      # A state is saved or judged only once its own loss is known to be good.
      row = finish(pending)
      pending = None
      with clock.paused():
        if evaluates:
          scores = evaluate(state.params, state.balance)
          row = (row or {}) | {
            k: v for k, v in scores.items() if not k.endswith(('_low', '_high'))
          }
        if row is not None:
          writer.write(step, row)
          bar.update(step, row)
        if saves:
          checkpoints.save(
            step,
            state,
            {
              'data_step': step,
              'fingerprint': session.data.fingerprint,
              'config': config_dict,
            },
          )
  if start >= c.steps:  # killed after the last checkpoint
    scores = evaluate(state.params, state.balance)
  bar.close()
  writer.close()
  checkpoints.close()

  summary = scores | evaluate.floor() | _facts(session, rate, clock)
  summary |= _last(last_row)
  if lead:
    writers.write_json(summary_path, summary)
  return summary


class _Clock:
  """Tokens per second of the steps after the first, without evaluations."""

  def __init__(self, start: int):
    self._start, self._began = start, time.monotonic()
    self._since, self._tokens, self._steps = None, 0.0, 0
    self._recent: tuple[float, float] = (0.0, 0.0)
    self.tokens_per_second = 0.0

  def tick(self, step: int, tokens: float) -> None:
    now = time.monotonic()
    if self._since is None:  # the first step compiled
      self._since = now
      self._recent = now, 0.0
      return
    self._tokens += tokens
    self._steps += 1
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

  def paused(self):
    """A context whose time counts as no step's."""
    clock = self

    class Pause:
      def __enter__(self):
        self.began = time.monotonic()

      def __exit__(self, *_):
        spent = time.monotonic() - self.began
        if clock._since is not None:
          clock._since += spent
          clock._recent = clock._recent[0] + spent, clock._recent[1]

    return Pause()

  @property
  def seconds(self) -> float:
    return time.monotonic() - self._began


def _check_finite(step: int, metrics, checkpoints) -> None:
  for name in ('loss', 'total_loss', 'grad_norm'):
    if not math.isfinite(metrics[name]):
      good = checkpoints.latest()
      kept = f'step {good} in {checkpoints.directory}'
      raise FloatingPointError(
        f'{name} is {float(metrics[name])} at step {step}; last good '
        f'checkpoint: {kept if good is not None else "none"}'
      )


def _row(metrics, session) -> dict[str, Any]:
  """A step's arrays as the names and numbers that are logged."""
  row = {
    'loss': float(metrics['loss']),
    'total_loss': float(metrics['total_loss']),
    'bits_per_token': float(metrics['loss']) / math.log(2),
    'grad_norm': float(metrics['grad_norm']),
  }
  if 'load' not in metrics:
    return row
  load_NE = metrics['load'].astype(np.float64)
  share_NE = load_NE / np.maximum(load_NE.sum(-1, keepdims=True), 1)
  row |= {
    'moe/dropped': evaluation.dropped(metrics['cause']),
    'moe/load_max': float((share_NE.max(-1) * share_NE.shape[-1]).mean()),
    'moe/load': share_NE.tolist(),
    'moe/layers': session_lib.layer_numbers(session.model),
    'router/entropy': float(metrics['entropy'].mean()),
  }
  for name, value in metrics['balance'].items():
    row[f'balance/{name}'] = float(value.mean())
  return row


def _facts(session, rate: float, clock: _Clock) -> dict[str, Any]:
  leaves = session.leaves()
  flops = session.flops_per_token()
  return {
    'parameters': counts.parameters(leaves),
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
  keys = ('loss', 'moe/dropped', 'moe/load_max')
  out = {k: row[k] for k in keys if k in row}
  for layer, share in zip(row.get('moe/layers', ()), row.get('moe/load', ())):
    out[f'moe/layer_{layer}/load_max'] = max(share) * len(share)
  return out
