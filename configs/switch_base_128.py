"""Switch-Base with 128 experts.

  python -m experiments.train --config=configs/switch_base_128.py \\
      --workdir=/tmp/switch_base_128 --config.data.dir=/data/tfds \\
      --config.data.tokenizer="sentencepiece(path='/data/cc_all.32000.model')"

Fedus, Zoph and Shazeer 2021, arXiv:2101.03961, tables 1 and 9: top-1 of 128
experts in every other FFN of T5-Base, capacity factor 1.25 in training and 2.0
in evaluation, groups of 8,192 encoder tokens (the released configuration's).
7,415,217,408 parameters. Published: 124 GFLOPs forward a sequence, negative log
perplexity -1.553 after 100k steps, -1.306 after 500k; 910 sequences per second
on 32 TPUv3 cores, 65.0 hours to -1.50 (62.8 at capacity factor 1.0, 72.8 at
2.0). Not trained here.
"""

from configs import t5_family


def get_config(arg=''):
  """The config; `arg` must be ''."""
  return t5_family.switch('base', arg, num_experts=128, sequences=16).lock()
