"""Switch-Large: top-1 of 128 experts in every other FFN of T5-Large.

  python -m experiments.train --config=configs/switch_large.py \\
      --workdir=/tmp/switch_large --config.data.dir=/data/tfds \\
      --config.data.tokenizer="sentencepiece(path='/data/cc_all.32000.model')"

Fedus, Zoph and Shazeer 2021, arXiv:2101.03961, table 9. 26,309,291,008
parameters, with ReLU experts of width 4,096 and a tied head, as released (table
9's GEGLU of width 2,816 would make 27.1 billion). Groups of 4,096 encoder
tokens. Published: 425 GFLOPs forward a sequence, negative log perplexity -1.248
after 250k steps and -1.177 after 500k. Not trained here.
"""

from configs import t5_family


def get_config(arg=''):
  """The config; `arg` must be ''."""
  config = t5_family.switch('large', arg, num_experts=128, sequences=8)
  config.model.remat = 'full'
  return config.lock()
