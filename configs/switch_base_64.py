"""Switch-Base with 64 experts.

  python -m experiments.train --config=configs/switch_base_64.py \\
      --workdir=/tmp/switch_base_64 --config.data.dir=/data/tfds \\
      --config.data.tokenizer="sentencepiece(path='/data/cc_all.32000.model')"

Fedus, Zoph and Shazeer 2021, arXiv:2101.03961, figure 4 and table 7: top-1 of
64 experts in every other FFN of T5-Base, capacity factor 1.25 in training and
2.0 in evaluation, groups of 8,192 encoder tokens (the released
configuration's). 3,790,748,928 parameters. Published: negative log perplexity
-1.444 as the teacher of table 7, where T5-Base has -1.636. Not trained here.
"""

from configs import t5_family


def get_config(arg=''):
  """The config; `arg` must be ''."""
  return t5_family.switch('base', arg, num_experts=64, sequences=16).lock()
