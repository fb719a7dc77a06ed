"""Validation: bits per byte beside the bigram floor, or accuracy of a task."""

import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P

from moe_jax.data import bigram, intervals, tasks
from moe_jax.errors import NotFiniteError
from moe_jax.training import session as session_lib, step as step_lib, trail


class Evaluator:
  """Runs the validation set through a model; compiles once.

  The bigram floor is fitted when it is first asked for.
  """

  def __init__(self, session: session_lib.Session):
    self._session = session
    documents = session.data.documents
    where = NamedSharding(session.mesh, P())
    self._step = jax.jit(
      step_lib.make_eval_step(session.model, len(documents)),
      out_shardings=where,
    )
    self._domain_N = np.array([d.domain for d in documents])
    self._bytes_N = np.array([d.num_bytes for d in documents])
    self._task = isinstance(session.data, tasks.TaskData)
    self._floor = None

  def __call__(self, params, balance) -> dict[str, Any]:
    """Metrics of the validation set.

    Returns:
      'eval/loss' (nats a target token), 'eval/seconds', moe/eval_dropped and
      moe/eval_wasted (share of the seats left empty) of an MoE model, and for
      a causal model 'eval/[<domain>/]bits_per_byte' with '_low' and '_high',
      'eval/<domain>/documents' and '/bytes'. The end of a document costs bits
      and counts no byte. Of a task, what `tasks.TaskData.scores` says in
      place of the loss and the bits.

    Raises:
      FloatingPointError: the loss of a document is not finite; names it.
    """
    s, start = self._session, time.monotonic()
    sums, count = None, 0
    batches = s.data.validation(
      batch_size=s.config.eval.batch_size,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )
    for batch in batches:
      count += 1
      out = self._step(params, balance, s.put(batch))
      out = {k: out[k] for k in ('nats', 'tokens', 'cause') if k in out}
      sums = out if sums is None else jax.tree.map(jnp.add, sums, out)
    sums = jax.device_get(sums)
    nats_N = sums['nats'].astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(nats_N))
    if bad.size:
      raise NotFiniteError(
        f'eval/loss is {nats_N[bad].sum()}, by {bad.size} of {nats_N.size} '
        f'documents, such as {s.data.documents[bad[0]].name!r}'
      )
    metrics = {'eval/loss': float(nats_N.sum() / max(sums['tokens'], 1))}
    if 'cause' in sums:
      cause_QC = np.asarray(sums['cause'], np.int64)
      held = sum(
        seats * sum(s.model.stacks[name].sparse)
        for name, seats in trail.seats(s, 'eval').items()
      )
      metrics['moe/eval_dropped'] = trail.dropped(cause_QC)
      metrics['moe/eval_wasted'] = trail.wasted(cause_QC, held * count)
    if self._task:
      metrics |= s.data.scores(nats_N)
    elif s.config.model.kind == 'decoder':
      metrics |= self._by_domain(nats_N / math.log(2), '')
    metrics['eval/seconds'] = time.monotonic() - start
    return metrics

  def floor(self) -> dict[str, float]:
    """'eval/[<domain>/]bigram_bits_per_byte'; {} for a model without bits."""
    if self._task or self._session.config.model.kind != 'decoder':
      return {}
    if self._floor is None:
      self._floor = bigram.floor(self._session.data)
    by_domain = self._by_domain(self._floor.bits_N, 'bigram_')
    return {
      k: v for k, v in by_domain.items() if k.endswith('bigram_bits_per_byte')
    }

  def _by_domain(self, bits_N, prefix) -> dict[str, float]:
    out = {}
    for domain in (None, *self._session.data.domains):
      mine = slice(None) if domain is None else self._domain_N == domain
      name = 'eval/' if domain is None else f'eval/{domain}/'
      estimate = intervals.bits_per_byte(
        bits_N[mine], self._bytes_N[mine], self._domain_N[mine]
      )
      key = f'{name}{prefix}bits_per_byte'
      out[key] = estimate.value
      out[f'{key}_low'], out[f'{key}_high'] = estimate.low, estimate.high
      out[f'{name}documents'] = int(self._bytes_N[mine].size)
      out[f'{name}bytes'] = int(self._bytes_N[mine].sum())
    return out
