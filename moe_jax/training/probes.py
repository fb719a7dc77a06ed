"""What else is measured of a run's last state, by call string (`eval.probes`).

A probe looks at one checkpoint, on the validation set, in evaluation: what it
finds is a property of those weights alone. Its numbers stand in the summary
under 'probe/<name>/'.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax import registry, types
from moe_jax.errors import UserError
from moe_jax.models import stack
from moe_jax.training import (
  checks,
  domain_probes,
  evaluation,
  session as session_lib,
  step as step_lib,
)


def measure(session: session_lib.Session, params, balance) -> dict[str, float]:
  """Runs the probes of `eval.probes` on a state's parameters."""
  out = {}
  for spec in session.config.eval.probes:
    name, _ = registry.parse(spec)
    found = build(spec)(session, params, balance)
    out |= {f'probe/{name}/{k}': float(v) for k, v in found.items()}
  return out


def check(config) -> None:
  """Raises ValueError where `eval.probes` names what cannot be measured."""
  for spec in config.eval.probes:
    build(spec)
    if registry.parse(spec)[0] in ANY:
      continue
    if not checks.sparse_stacks(config):
      raise UserError(
        f'eval.probes has {spec!r}, which looks at MoE layers; this model has '
        'none'
      )


def build(spec: str):
  """`'logits()'` -> (session, params, balance) -> {name: number}.

  Raises:
    ValueError: unknown probe or argument; the message lists the valid ones.
  """
  return registry.call(spec, PROBES, 'probe')


def capacity_factors(values=(0.5, 0.75, 1.0, 1.25, 2.0, 3.0)):
  """Loss and drops of ONE checkpoint by the capacity factor of evaluation.

  ST-MoE's table 8 (arXiv:2202.08906). '<factor>/loss', '<factor>/dropped'.
  """
  for v in values:
    if not (isinstance(v, int | float) and v >= 0):
      raise UserError(
        f'capacity_factors: values={values}: {v!r} is no factor (0 is dropless)'
      )

  def probe(session, params, balance):
    out = {}
    for factor in values:
      evaluate = session.program(
        f'capacity {factor}',
        lambda f=factor: evaluation.Evaluator(_with_factor(session, f)),
      )
      scores = evaluate(params, balance)
      out[f'{factor}/loss'] = scores['eval/loss']
      out[f'{factor}/dropped'] = scores['moe/eval_dropped']
    return out

  return probe


def drop_by_position(bins=8, capacity_factor=None):
  """Share of the assignments dropped by position in the row.

  'bin_<i>' from the first to the last part of the rows; 'slope' is the last
  bin's share less the first's.

  Args:
    bins: equal parts of a row.
    capacity_factor: in evaluation; None is that of training.
  """

  def probe(session, params, balance):
    # Of two stacks the first that has MoE layers.
    name, fields = next(iter(checks.sparse_stacks(session.config).items()))
    factor = capacity_factor
    if factor is None:
      factor = fields['capacity_factor']
    length = session.lengths[name]
    run = session.program(
      f'positions {bins} {factor}',
      lambda: jax.jit(_position_sums(_with_factor(session, factor), name)),
    )
    sums_2L = np.zeros((2, length), np.int64)
    for batch in session.validation():
      sums_2L += np.asarray(run(params, balance, session.put(batch)))
    parts = np.array_split(sums_2L, bins, axis=1)
    shares = [p[0].sum() / max(p.sum(), 1) for p in parts]
    out = {f'bin_{i}': v for i, v in enumerate(shares)}
    return out | {'slope': shares[-1] - shares[0]}

  return probe


def logits():
  """Means over tokens and MoE layers: logsumexp, entropy, root mean square."""

  def probe(session, params, balance):
    run = session.program(
      'logits',
      # Only the routers are looked at.
      lambda: jax.jit(step_lib.make_eval_step(session.model, lambda *_: {})),
    )
    sums = None
    for batch in session.validation():
      out = run(params, balance, session.put(batch))
      tokens = out['health']['tokens']
      out = out['health'] | {'entropy': out['entropy'] * tokens}
      sums = out if sums is None else jax.tree.map(jnp.add, sums, out)
    total = {k: np.asarray(v, np.float64).sum() for k, v in sums.items()}
    mean = lambda k: total[k] / max(total['tokens'], 1)
    return {
      'logsumexp': mean('logsumexp'),
      'entropy': mean('entropy'),
      'rms': mean('square') ** 0.5,
    }

  return probe


def _with_factor(session, factor) -> session_lib.Session:
  """The session with another capacity factor of evaluation, in all stacks."""
  config = checks.with_eval_factor(session.config, factor)
  model = session.problem.model(config, session.mesh)
  return dataclasses.replace(session, config=config, model=model, programs={})


def _position_sums(session, name):
  """(params, balance, batch) -> int32 [2, L]: dropped and kept by position."""
  length = session.lengths[name]
  recorded = lambda m: dataclasses.replace(m, record=True)
  model = stack.with_moe(session.model, recorded, (name,))

  def run(params, balance, batch):
    variables = {'params': params} | ({'balance': balance} if balance else {})
    _, aux = step_lib.evaluated(model, variables, batch)
    sums_2L = jnp.zeros((2, length), jnp.int32)
    tokens = batch['segments'].shape[0] * length
    for layer, a in step_lib.moe_aux(model, aux):
      if not layer.startswith(name):
        continue
      token_GN, cause_GN = a.record['token'], a.record['cause']
      # Whatever the size of a group was: all of them are the whole batch.
      G = token_GN.shape[0]
      flat_GN = jnp.arange(G)[:, None] * (tokens // G) + token_GN
      position_GN = flat_GN % length
      for i, cause in enumerate((types.CAPACITY, types.KEPT)):
        sums_2L = sums_2L.at[i, position_GN].add(cause_GN == cause)
    return sums_2L

  return run


# What is measured of a dense model, too.
ANY = ('switching',)
PROBES: dict[str, Any] = {
  'capacity_factors': capacity_factors,
  'drop_by_position': drop_by_position,
  'logits': logits,
  **domain_probes.PROBES,
}
