"""ST-MoE: top-2 in every fourth FFN of a T5, each followed by a dense FFN.

  python -m experiments.train --config=configs/st_moe.py:l \\
      --workdir=/tmp/st_moe_l --config.data.dir=/data/tfds \\
      --config.data.tokenizer="sentencepiece(path='/data/cc_all.32000.model')"
  python -m experiments.describe --config=configs/st_moe.py:32b \\
      --mesh='exact(data=4,expert=16,model=16)'

Zoph et al. 2022, arXiv:2202.08906, table 11 and section 7, with GEGLU experts
and a head of its own; the recipe is T5's (t5.py). Not trained here. A group
counts encoder and decoder tokens.

  | argument | experts | group      | parameters                 | GFLOPs |
  | base     | 16      | 4,096, 912 | 700,641,024 parameters     |        |
  | l        | 32      | 2,048, 456 | 4,105,444,352 parameters   | 645    |
  | 32b      | 64      | 4,096, 912 | 269,104,613,376 parameters | 20,200 |

GFLOPs forward a sequence are the paper's. 24 blocks a stack, six of them with
two FFNs, are what its table calls 27 layers. The multiplicative bias of
appendix C is left out: neither the parameter counts that are known nor the
released configurations have it.

`l`: 2.397 s a step of 2^20 tokens at capacity factor 1.25, 2.447 s at 2.0
(table 9), on hardware that is not told. `32b`: 1.5T tokens of pre-training,
4.244 s a step at 1.25 and 4.819 s at 2.0, on TPUs; the released configuration
divides them as 64 for data and 16 for the model. `base` is in no paper: T5X
ships it beside them, with a z-loss of 1e-4 where the paper has 1e-3. The layers
are the paper's, not T5X's (whose gates are not renormalised).
"""

import dataclasses

from configs import presets, t5


@dataclasses.dataclass(frozen=True)
class Model:
  """A size, experts, sequences whose tokens make a group, z-loss, steps."""

  size: t5.Size
  num_experts: int
  sequences: int
  z_loss: float = 0.001
  steps: int = 500_000


_BASE = t5.Size(768, 2048, 64, 12, 12, t5.GEGLU, False, 'none')
_L = t5.Size(1024, 2816, 64, 16, 24, t5.GEGLU, False)
_32B = t5.Size(5120, 20480, 128, 64, 24, t5.GEGLU, False)
MODELS = {
  'base': Model(_BASE, 16, 8, z_loss=1e-4),
  'l': Model(_L, 32, 4),
  '32b': Model(_32B, 64, 8, steps=1_430_000),
}


def get_config(arg='base'):
  """The config; `arg` is one of MODELS."""
  m = t5.choose('st_moe', arg or 'base', MODELS)
  fields = presets.st_moe(z_loss=m.z_loss) | {'moe.experts': m.size.ffn}
  config = t5.sparse(m.size, fields, m.num_experts, m.sequences)
  config.train.steps = m.steps
  return config.lock()
