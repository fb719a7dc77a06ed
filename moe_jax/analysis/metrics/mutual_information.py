"""Mutual information of experts and token ids, in nats.

The question of OpenMoE (Fuzhao Xue et al., 2024, arXiv:2402.01739, section 4:
'context-independent specialization'), as one number: how much of the choice of
an expert the token's id tells, whatever stands around it.

  I(expert; id) = sum_{x, i} p(x, i) log(p(x, i) / (p(x) p(i)))

A token's K choices are K draws of one variable: p(x, i) is the share of edges.
The plug-in number is biased by about (V - 1) (E - 1) / 2N nats, 0.21 for random
routing of 600,000 tokens of 4,096 ids over 64 experts: read `excess`, the share
of H(expert), the most that there is, which is left beyond the null. Held-out
cross-entropies, `context_independence`, are the other way to be rid of the
bias. Undefined where a layer has no edge.
"""

import dataclasses

import numpy as np

from moe_jax import registry
from moe_jax.analysis import counts
from moe_jax.analysis.metrics import _ids


@registry.register
@dataclasses.dataclass(frozen=True)
class MutualInformation(_ids.IdMetric):
  """Results, of each of `ids`: value, null with its interval, excess."""

  def statistic(self, count_VME, seen_V):
    load_ME = count_VME.sum(0, dtype=np.int64)
    return counts.mutual_information(count_VME), counts.entropy(load_ME)
