"""What a run says of a step (its row) and of itself (in its summary)."""

from typing import Any

import jax
import numpy as np

from moe_jax.parallel import mesh as mesh_lib
from moe_jax.planning import counts
from moe_jax.training import (
  clock as clock_lib,
  health,
  session as session_lib,
  trail,
  tuning,
)


def row(
  metrics: dict[str, Any], session: session_lib.Session, last_load: Any
) -> dict[str, Any]:
  """A step's arrays as the names and numbers that are logged.

  Args:
    metrics: from the train step, fetched.
    session: of the run.
    last_load: 'moe/load' of the row before, or None.
  """
  out = {
    'loss': float(metrics['loss']),
    'total_loss': float(metrics['total_loss']),
    **session.problem.logged(float(metrics['loss'])),
    'grad_norm': float(metrics['grad_norm']),
  }
  if 'distill_loss' in metrics:
    out['distill_loss'] = float(metrics['distill_loss'])
  if 'load' not in metrics:
    return out
  load_NE = metrics['load'].astype(np.float64)
  share_NE = load_NE / np.maximum(load_NE.sum(-1, keepdims=True), 1)
  out |= {
    'moe/dropped': trail.dropped(metrics['cause']),
    'moe/load_max': float((share_NE.max(-1) * share_NE.shape[-1]).mean()),
    'moe/load': share_NE.tolist(),
    'moe/layers': session_lib.layer_numbers(session.model),
    'router/entropy': float(metrics['entropy'].mean()),
  }
  for name, value in health.rates(metrics, last_load).items():
    out[f'health/{name}'] = value
  for name, value in metrics['balance'].items():
    out[f'balance/{name}'] = float(value.mean())
  return out


def of_run(
  session: session_lib.Session, rate: float, clock: clock_lib.Clock
) -> dict[str, Any]:
  """Sizes, speed (None without two steps to measure), and on what it ran.

  Args:
    session: of the run.
    rate: FLOPs per second that the devices reach in matrix products.
    clock: of the run.
  """
  leaves = session.leaves()
  flops = session.flops_per_token()
  speed = clock.tokens_per_second
  out = {
    'parameters': counts.parameters(leaves),
    'trained_parameters': tuning.size(session.layout.params, session.trained),
    'active_parameters': round(
      counts.active_parameters(leaves, session.expert_share())
    ),
    'flops_per_token': flops,
    'tokens_per_second': speed,
    'matmul_flops_per_second': rate,
    'mfu': None if speed is None else speed * flops / rate,
    'seconds': clock.seconds,
    'steps': session.config.train.steps,
    'tokens': tokens(session),
    'jax': jax.__version__,
    'platform': jax.devices()[0].platform,
    'devices': jax.device_count(),
    'mesh': mesh_lib.describe(dict(session.mesh.shape)),
  }
  if clock.step_seconds is not None:
    out['step_seconds'] = clock.step_seconds
  left_out = session.data.left_out if session.data else 0
  if left_out:
    out['bad_records'] = left_out
  return out


def tokens(session: session_lib.Session) -> int:
  """Target tokens of all steps of a run, padding included."""
  train = session.config.train
  return train.steps * train.batch_size * session.lengths['decoder']


def of_last(row: dict[str, Any]) -> dict[str, Any]:
  """What the summary takes from the last step's metrics."""
  keys = ('loss', 'distill_loss', 'moe/dropped', 'moe/load_max')
  out = {k: row[k] for k in keys if k in row}
  for layer, share in zip(row.get('moe/layers', ()), row.get('moe/load', ())):
    out[f'moe/layer_{layer}/load_max'] = max(share) * len(share)
  return out
