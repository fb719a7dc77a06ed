"""Routing health: one set of numbers for every router, by layer.

From the sums that an MoE layer returns over a step's batch, all micro-batches
and devices; each is a list, an entry a MoE layer:

  max_violation    largest load over the mean, less 1: MaxVio of one batch (Wang
                   et al. 2024, arXiv:2408.15664, section 4.1); 0 is balanced
  load_cv          coefficient of variation of the loads (Shazeer et al. 2017,
                   arXiv:1701.06538, section 4)
  load_entropy     of the load's shares, in nats; ln E is balanced
  dead             experts without an assignment
  agreement        overlap of the load's shares with those of the step logged
                   before: sum_e min(a_e, b_e); 1 is the same load
  dropped_capacity, dropped_receiver   shares of the assignments sent
  local            share of the assignments sent: zero-computation experts'
  padding, unsent  shares of all assignments: those of padding, and choices of
                   real tokens that the router did not use
  experts_used     mean experts that computed for a real token
  used             shares of real tokens by that number, 0 to 15, and more
  router_entropy   mean over tokens of that of the affinities, in nats
  logit_norm       root mean square of the router's logits
  logsumexp        mean of their logsumexp
  bias_norm        root mean square of the selection bias

Loads are assignments before drops. A router without logits has none of their
numbers.
"""

from typing import Any

import numpy as np

from moe_jax import types


def rates(
  metrics: dict[str, Any], previous_ME: Any = None
) -> dict[str, list[Any]]:
  """The numbers above.

  Args:
    metrics: from a training step, of M layers and E experts.
    previous_ME: shares of the loads of the step logged before, or None.
  """
  load_ME = np.asarray(metrics['load'], np.float64)
  total_M1 = np.maximum(load_ME.sum(-1, keepdims=True), 1)
  share_ME, mean_M = load_ME / total_M1, load_ME.mean(-1)
  busy_M = np.maximum(mean_M, 1e-30)
  out = {
    'max_violation': np.where(mean_M > 0, load_ME.max(-1) / busy_M - 1, 0.0),
    'load_cv': load_ME.std(-1) / busy_M,
    'load_entropy': _entropy(share_ME),
    'dead': (load_ME == 0).sum(-1),
  }
  if previous_ME is not None:
    before_ME = np.asarray(previous_ME, np.float64)
    if before_ME.shape == share_ME.shape:
      out['agreement'] = np.minimum(share_ME, before_ME).sum(-1)
  cause_MC = np.asarray(metrics['cause'], np.int64)
  sent = (types.KEPT, types.CAPACITY, types.RECEIVER, types.LOCAL)
  sent_M = np.maximum(cause_MC[:, sent].sum(-1), 1)
  all_M = np.maximum(cause_MC.sum(-1), 1)
  out['dropped_capacity'] = cause_MC[:, types.CAPACITY] / sent_M
  out['dropped_receiver'] = cause_MC[:, types.RECEIVER] / sent_M
  out['local'] = cause_MC[:, types.LOCAL] / sent_M
  out['padding'] = cause_MC[:, types.PADDING] / all_M
  out['unsent'] = cause_MC[:, types.UNSENT] / all_M
  health = {k: np.asarray(v, np.float64) for k, v in metrics['health'].items()}
  tokens_M = np.maximum(health['tokens'], 1)
  used_MU = health['used'] / tokens_M[:, None]
  # More than 15 count as 16 in the mean of a router with so many choices.
  out['experts_used'] = used_MU @ np.arange(used_MU.shape[-1])
  out['used'] = used_MU
  out['router_entropy'] = np.asarray(metrics['entropy'], np.float64)
  out['bias_norm'] = health['bias'] / tokens_M
  if 'square' in health:
    out['logit_norm'] = np.sqrt(health['square'] / tokens_M)
    out['logsumexp'] = health['logsumexp'] / tokens_M
  return {k: v.tolist() for k, v in out.items()}


def _entropy(share_ME: np.ndarray) -> np.ndarray:
  safe_ME = np.where(share_ME > 0, share_ME, 1.0)
  return -(share_ME * np.log(safe_ME)).sum(-1)
