"""Switch-XXL: 395 billion parameters at the FLOPs of T5-XXL.

  python -m experiments.train --config=configs/switch_xxl.py \\
      --workdir=/tmp/switch_xxl --config.data.dir=/data/tfds \\
      --config.data.tokenizer="sentencepiece(path='/data/cc_all.32000.model')"

Fedus, Zoph and Shazeer 2021, arXiv:2101.03961, table 9. 394,675,073,024
parameters: top-1 of 128 GEGLU experts in every other FFN, with a head of its
own. Table 9 says 64 experts, which would make 201 billion; the released model
has 128, and a capacity factor of 4.0 in evaluation. Published: 6.3 TFLOPs
forward a sequence, negative log perplexity -1.086 after 250k steps and -1.008
after 500k. Not trained here.
"""

from configs import t5_family


def get_config(arg=''):
  """The config; `arg` must be ''."""
  config = t5_family.switch('xxl', arg, num_experts=128, sequences=8)
  config.model.remat = 'full'
  config.moe.eval_capacity_factor = 4.0
  config.moe.capacity_rule = 't5x(min_capacity=2)'
  return config.lock()
