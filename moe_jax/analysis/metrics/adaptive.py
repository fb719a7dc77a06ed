"""Adaptive compute: how many experts a token uses, by what it is.

Zeng et al., "AdaMoE", 2024, arXiv:2406.13233, figure 5; Jin et al., "MoE++",
2024, arXiv:2410.07348, section 4.4 (verbs take more experts than fragments);
Huang et al., "Harder Tasks Need More Experts", 2024, arXiv:2403.07652. Used are
choices that an expert computed, not zero-computation ones and not dropped: of a
token and layer a number from 0 to K, whose mean is 'value' and whose shares are
'histogram'; its mean 'by_class' (`token_text`), 'by_position' in the document
and 'by_loss' of the next token in nats. Where none of these matters each is
'value', which is their null. Classes without `min_count` tokens have no number.
Intervals: documents drawn again. How it goes with the loss: `difficulty`.
"""

import dataclasses

import numpy as np

from moe_jax import registry
from moe_jax.analysis import records, token_text
from moe_jax.analysis.metrics import base

POSITIONS = 0, 8, 32, 128, 512, 2048
LOSSES = 0, 0.25, 0.5, 1, 2, 4, 8
SIZES = len(token_text.CLASSES), len(POSITIONS), len(LOSSES), 1


@registry.register
@dataclasses.dataclass(frozen=True)
class Adaptive(base.Metric):
  """min_count: tokens of a bin that has a number."""

  min_count: int = 100
  draws: int = 200
  seed: int = 0

  def start(self, schema):
    D, M, K = len(schema.documents), *schema.shape
    known = bool(schema.tokenizer)
    read = token_text.classes(schema.tokenizer, schema.vocab) if known else None
    return {
      'class_V': read,
      'histogram': np.zeros((M, K + 1), np.int64),
      # By document and bin: used in each layer, last the tokens.
      'sums': np.zeros((D, sum(SIZES), M + 1), np.int64),
    }

  def add(self, state, part):
    used_nM = (part.cause == records.KEPT).sum(-1)
    layer_M = np.arange(used_nM.shape[1])
    np.add.at(state['histogram'], (layer_M, used_nM), 1)
    row_nR = np.pad(used_nM, ((0, 0), (0, 1)), constant_values=1)
    below = lambda edges, v_n: np.searchsorted(edges, v_n, 'right') - 1
    # What is in no bin of a kind is in one that is not kept.
    none_n = np.full(len(part), -1)
    bins = (
      none_n if state['class_V'] is None else state['class_V'][part.token],
      below(POSITIONS, part.position),
      np.where(part.loss >= 0, below(LOSSES, part.loss), -1),
      np.zeros(len(part), np.int64),
    )
    for bin_n, first in zip(bins, np.cumsum((0, *SIZES[:-1])), strict=True):
      in_n = bin_n >= 0
      at_n = part.document[in_n], bin_n[in_n] + first
      np.add.at(state['sums'], at_n, row_nR[in_n])
    return state

  def result(self, state, schema):
    """By layer; 'by_...' [M, bins], with the bins' own 'classes', ..."""
    D, domain_D = len(schema.documents), [d for d, _ in schema.documents]
    names, sums = ('by_class', 'by_position', 'by_loss'), state['sums']
    rare_B = sums[..., -1].sum(0) < self.min_count
    rare_B[-1] = False

    def numbers(times_D):
      all_BR = np.einsum('d,dbr->br', times_D, sums)
      count_B1 = np.where(all_BR[:, -1:] > 0, all_BR[:, -1:], np.nan)
      mean_MB = (all_BR[:, :-1] / count_B1).T
      mean_MB[:, rare_B] = np.nan
      return np.split(mean_MB, np.cumsum(SIZES[:-1]), 1)

    own = numbers(np.ones(D, np.int64))
    times = base.resample(D, self.draws, self.seed, domain_D)
    drawn = [*zip(*map(numbers, times), strict=True)]
    found = {'value': own[-1][:, 0]}
    found |= base.interval([v[:, 0] for v in drawn[-1]])
    for i, name in enumerate(names):
      found[f'{name}_value'] = own[i]
      found |= base.interval(drawn[i], f'{name}_')
    found['histogram'] = state['histogram'] / max(schema.tokens, 1)
    return found | {
      'classes': token_text.CLASSES,
      'positions': POSITIONS,
      'losses': LOSSES,
    }
