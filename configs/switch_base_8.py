"""Switch-Base with 8 experts.

  python -m experiments.train --config=configs/switch_base_8.py \\
      --workdir=/tmp/switch_base_8 --config.data.dir=/data/tfds \\
      --config.data.tokenizer="sentencepiece(path='/data/cc_all.32000.model')"

Fedus, Zoph and Shazeer 2021, arXiv:2101.03961, appendix D and the released
checkpoint of this size: top-1 of 8 experts in every other FFN of T5-Base,
capacity factor 1.25 in training and 2.0 in evaluation, groups of 8,192 encoder
tokens (the released configuration's). 619,339,008 parameters. Published: no
figures for this one. Not trained here.
"""

from configs import t5_family


def get_config(arg=''):
  """The config; `arg` must be ''."""
  return t5_family.switch('base', arg, num_experts=8, sequences=16).lock()
