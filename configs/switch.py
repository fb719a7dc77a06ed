"""Switch Transformers: top-1 of many experts in the FFNs of a T5.

  python -m experiments.train --config=configs/switch.py:base_8 \\
      --workdir=/tmp/switch_base_8 --config.data.dir=/data/tfds \\
      --config.data.tokenizer="sentencepiece(path='/data/cc_all.32000.model')"

Fedus, Zoph and Shazeer 2021, arXiv:2101.03961, figure 4, tables 1, 7 and 9 and
appendix D; the recipe is T5's (t5.py). Every other FFN is sparse (C: every
one), capacity factor 1.25 in training (C: 1.0) and 2.0 in evaluation (XXL:
4.0). A group is the released configuration's. Not trained here. Published:
log perplexity as the teacher of table 7, where T5-Base has 1.636 (base_16 to
256); after 100k and 500k steps (base_128), after 250k and 500k (the others).

  | argument | experts | group | parameters                   | loss         |
  | base_8   | 8       | 8,192 | 619,339,008 parameters       |              |
  | base_16  | 16      | 8,192 | 1,072,397,568 parameters     | 1.505        |
  | base_32  | 32      | 8,192 | 1,978,514,688 parameters     | 1.474        |
  | base_64  | 64      | 8,192 | 3,790,748,928 parameters     | 1.444        |
  | base_128 | 128     | 8,192 | 7,415,217,408 parameters     | 1.553, 1.306 |
  | base_256 | 256     | 8,192 | 14,664,154,368 parameters    | 1.427        |
  | large    | 128     | 4,096 | 26,309,291,008 parameters    | 1.248, 1.177 |
  | xxl      | 128     | 4,096 | 394,675,073,024 parameters   | 1.086, 1.008 |
  | c        | 2,048   | 2,048 | 1,571,261,049,120 parameters | 1.096, 1.043 |

Published GFLOPs forward a sequence: base 124, large 425, xxl 6,300, c 890.
base_128: 910 sequences per second on 32 TPUv3 cores, 65.0 hours to 1.50 (62.8
at capacity factor 1.0, 72.8 at 2.0).

Where table 9 contradicts its parameter counts, the released configurations
decide. Base and Large have ReLU experts of width 3,072 and 4,096 and a tied
head (table 9's GEGLU of width 2,816 would make Large 27.1 billion). XXL has 128
GEGLU experts and a head of its own (64, as in table 9, would make 201 billion).
C has ReLU, a tied head and 30 attention heads (table 9 says 32); in its groups
of 2,048 tokens an expert's mean share is one token.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from configs import presets, t5


@dataclasses.dataclass(frozen=True)
class Model:
  """A size, experts, sequences whose tokens make a group, fields of moe."""

  size: t5.Size
  num_experts: int
  sequences: int
  moe: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_XXL = t5.Size(4096, 10240, 64, 64, 24, t5.GEGLU, False)
_C = t5.Size(2080, 6144, 64, 30, 15, t5.RELU, True)
_SMALL = {'capacity_rule': 't5x(min_capacity=2)'}
MODELS = {
  **{
    f'base_{E}': Model(t5.MODELS['base'], E, 16)
    for E in (8, 16, 32, 64, 128, 256)
  },
  'large': Model(t5.MODELS['large'], 128, 8),
  'xxl': Model(_XXL, 128, 8, _SMALL | {'eval_capacity_factor': 4.0}),
  'c': Model(_C, 2048, 4, _SMALL | {'layers': 'all', 'capacity_factor': 1.0}),
}


def get_config(arg='base_8'):
  """The config; `arg` is one of MODELS."""
  m = t5.choose('switch', arg or 'base_8', MODELS)
  ffn = 'relu' if m.size.ffn == t5.RELU else 'geglu'
  fields = presets.switch(ffn=ffn)
  config = t5.sparse(m.size, fields, m.num_experts, m.sequences)
  config.moe.update(m.moe)
  return config.lock()
