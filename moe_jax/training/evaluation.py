"""Validation: a problem's scores of a model, beside their floor."""

import functools
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P

from moe_jax.errors import NotFiniteError, UserError
from moe_jax.training import (
  fresh_rules,
  kept_data,
  session as session_lib,
  step as step_lib,
  trail,
)


def of_run(
  config: Any, workdir: str, mesh_spec: str = '', step: int | None = None
) -> tuple[session_lib.Session, Any]:
  """A session of a run's config on its validation set, and a state of it.

  Args:
    config, workdir: of the run.
    mesh_spec: in place of the config's mesh.
    step: of the checkpoint; None is the newest.

  Raises:
    ValueError: no checkpoint, or other data than it was trained beside.
  """
  s = session_lib.make(config, workdir, mesh_spec=mesh_spec, splits=('eval',))
  state, data = fresh_rules.of_run(s, workdir, step)
  kept_data.check(
    s.data,
    workdir,
    data['fingerprint'],
    'its validation documents may have been trained on',
  )
  return s, state


class Evaluator:
  """Runs the validation set through a model; compiles once.

  The floor is found when it is first asked for.
  """

  def __init__(self, session: session_lib.Session):
    self._session = session
    judge = functools.partial(session.problem.judge, data=session.data)
    self._step = jax.jit(
      step_lib.make_eval_step(session.model, judge),
      out_shardings=NamedSharding(session.mesh, P()),
    )
    self._floor = None

  def __call__(self, params, balance) -> dict[str, Any]:
    """Metrics of the validation set.

    Returns:
      The problem's scores, 'eval/loss' among them; 'eval/seconds'; of an MoE
      model moe/eval_dropped and moe/eval_wasted (share of the seats left
      empty); of a model whose routers are given their experts (`forced`)
      'replay/<layer>', the share of these that they would choose themselves.

    Raises:
      FloatingPointError: the loss is not finite; names of what.
    """
    s, start = self._session, time.monotonic()
    sums, count = self._sums(params, balance)
    metrics = dict(s.problem.scores(sums['sums'], s.data))
    if not math.isfinite(metrics['eval/loss']):
      raise NotFiniteError(f'eval/loss is {metrics["eval/loss"]}')
    if 'cause' in sums:
      cause_QC = np.asarray(sums['cause'], np.int64)
      held = sum(
        seats * sum(s.model.stacks[name].sparse)
        for name, seats in trail.seats(s, 'eval').items()
      )
      metrics['moe/eval_dropped'] = trail.dropped(cause_QC)
      metrics['moe/eval_wasted'] = trail.wasted(cause_QC, held * count)
    if 'agreed' in sums:
      for name, given, agreed in zip(
        step_lib.moe_layers(s.model), sums['given'], sums['agreed'], strict=True
      ):
        metrics[f'replay/{name}'] = float(agreed / max(given, 1))
    metrics['eval/seconds'] = time.monotonic() - start
    return metrics

  def _sums(self, params, balance) -> tuple[dict[str, Any], int]:
    """Over all batches, and how many they are."""
    s, sums, count = self._session, None, 0
    for batch in s.validation():
      count += 1
      out = self._step(params, balance, s.put(batch))
      out = out.get('health', {}) | out
      kept = ('sums', 'cause', 'given', 'agreed')
      out = {k: out[k] for k in kept if k in out}
      sums = out if sums is None else jax.tree.map(jnp.add, sums, out)
    return jax.device_get(sums), count

  def against(self, mine: Any, other: 'Evaluator', theirs: Any) -> dict:
    """Scores of a state less those of another run's, paired.

    Args:
      mine, theirs: train states, of this session and of the other's.
      other: of a run that is evaluated on the same documents.

    Raises:
      ValueError: it is not, or the problem knows no difference.
    """
    sessions = self._session, other._session
    if len({tuple(s.data.documents) for s in sessions}) > 1:
      raise UserError(
        'the runs are evaluated on different documents: data, data.domains, '
        'eval.documents and eval.max_bytes are to be the same'
      )
    states = (self, mine), (other, theirs)
    sums = [e._sums(x.params, x.balance)[0]['sums'] for e, x in states]
    return sessions[0].problem.difference(*sums, sessions[0].data)

  def floor(self) -> dict[str, float]:
    """What a model must beat, as the problem says."""
    if self._floor is None:
      self._floor = self._session.problem.floor(self._session.data)
    return self._floor
