"""Drops as they were: by position, domain and cause.

Xue et al., "OpenMoE", 2024, arXiv:2402.01739, section 4: tokens late in a
sequence are dropped more, which is seating by order in groups that are
sequences, and text unlike the training's is dropped more. Of the choices that
were sent

  value = (capacity + receiver) / (kept + local + capacity + receiver)

K choices of a token count alike. 'by_cause' are shares of all choices, in the
order of `records.CAUSES`. Nulls: of a position bin, the drops of its documents
anywhere (late positions are of long documents alone); of a domain, documents
dealt to the domains anew. Intervals: documents drawn again. Positions are in
the document, or in a row of `row` tokens of it. Other capacities: `drops_at`.
"""

import dataclasses

import numpy as np

from moe_jax import registry
from moe_jax.analysis import records
from moe_jax.analysis.metrics import base

EDGES = 0, 32, 64, 128, 256, 512, 1024, 2048, 4096
KEPT, CAPACITY, RECEIVER, LOCAL = map(
  records.CAUSES.index, ('kept', 'capacity', 'receiver', 'local')
)


@registry.register
@dataclasses.dataclass(frozen=True)
class Drops(base.Metric):
  """row: tokens of the rows that documents were cut into; 0 is whole ones."""

  row: int = 0
  edges: tuple = EDGES
  draws: int = 200
  seed: int = 0

  def start(self, schema):
    D, M = len(schema.documents), len(schema.layers)
    return np.zeros((D, len(self.edges), M, len(records.CAUSES)), np.int64)

  def add(self, state, part):
    M = part.cause.shape[1]
    position_n = part.position % self.row if self.row else part.position
    bin_n = np.searchsorted(self.edges, position_n, 'right') - 1
    row_n = part.document.astype(np.int64) * len(self.edges) + bin_n
    cell_nMK = (row_n[:, None] * M + np.arange(M))[..., None]
    cell_nMK = cell_nMK * len(records.CAUSES) + part.cause
    np.add.at(state.reshape(-1), cell_nMK.reshape(-1), 1)
    return state

  def result(self, state, schema):
    """[M], 'by_position' [M, bins], 'by_domain' [M, domains] with theirs."""
    D, domain_D = len(schema.documents), [d for d, _ in schema.documents]
    lost_DPM = state[..., [CAPACITY, RECEIVER]].sum(-1)
    sent_DPM = lost_DPM + state[..., [KEPT, LOCAL]].sum(-1)
    domains = np.arange(len(schema.domains))

    def numbers(times_D, domain_D=domain_D):
      lost, sent = (times_D[:, None, None] * v for v in (lost_DPM, sent_DPM))
      at = np.equal.outer(domains, domain_D).astype(float)
      return {
        '': _share(lost.sum((0, 1)), sent.sum((0, 1))),
        'by_position_': _share(lost.sum(0), sent.sum(0)).T,
        'by_domain_': _share(at @ lost.sum(1), at @ sent.sum(1)).T,
      }

    once, rng = np.ones(D), np.random.default_rng(self.seed)
    found = {f'{k}value': v for k, v in numbers(once).items()}
    times = base.resample(D, self.draws, self.seed, domain_D)
    again = [numbers(times_D) for times_D in times]
    for k in again[0]:
      found |= base.interval([v[k] for v in again], k)
    deal = lambda: numbers(once, rng.permutation(domain_D))['by_domain_']
    dealt = [deal() for _ in range(self.draws)]
    found |= base.interval(dealt, 'by_domain_null_')
    own_DM = np.nan_to_num(_share(lost_DPM.sum(1), sent_DPM.sum(1)))
    expected_PM = (sent_DPM * own_DM[:, None]).sum(0)
    cause_MC = state.sum((0, 1))
    return found | {
      'by_domain_null': np.mean(dealt, 0),
      'by_position_null': _share(expected_PM, sent_DPM.sum(0)).T,
      'by_cause': _share(cause_MC, cause_MC.sum(-1, keepdims=True)),
      'edges': self.edges,
    }


def _share(part, whole):
  return part / np.where(whole > 0, whole, np.nan)
