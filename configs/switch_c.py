"""Switch-C: 1.6 trillion parameters, 2,048 experts in every FFN.

  python -m experiments.train --config=configs/switch_c.py \\
      --workdir=/tmp/switch_c --config.data.dir=/data/tfds \\
      --config.data.tokenizer="sentencepiece(path='/data/cc_all.32000.model')"

Fedus, Zoph and Shazeer 2021, arXiv:2101.03961, table 9. 1,571,261,049,120
parameters, with ReLU experts, a tied head and the 30 attention heads of the
released configuration (table 9 says 32). Capacity factor 1.0 in training,
groups of 2,048 encoder tokens, so that an expert's mean share of a group is one
token. Published: 890 GFLOPs forward a sequence, negative log perplexity -1.096
after 250k steps and -1.043 after 500k. Not trained here.
"""

from configs import t5_family


def get_config(arg=''):
  """The config; `arg` must be ''."""
  config = t5_family.switch('c', arg, num_experts=2048, sequences=4)
  config.model.remat = 'full'
  config.moe.layers = 'all'
  config.moe.capacity_factor = 1.0
  config.moe.capacity_rule = 't5x(min_capacity=2)'
  return config.lock()
