"""T5's denoising on an encoder-decoder; see `data.objectives.SpanCorruption`.

Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified
Text-to-Text Transformer", arXiv:1910.10683, section 3.1.4. The loss is of the
spans; it has no bits per byte, since the kept text is seen.
"""

import dataclasses

from moe_jax import registry
from moe_jax.data import objectives
from moe_jax.problems import language


@registry.register
@dataclasses.dataclass(frozen=True)
class SpanCorruption(language.Corpus):
  """Tells the spans that sentinels stand for."""

  kinds = ('encoder_decoder',)

  def target_length(self):
    objective = objectives.build(self.data.objective)
    return objective.targets_length(self.data.seq_len)
