"""T5-Base, the dense baseline of Switch-Base.

  python -m experiments.train --config=configs/t5_base.py \\
      --workdir=/tmp/t5_base --config.data.dir=/data/tfds \\
      --config.data.tokenizer="sentencepiece(path='/data/cc_all.32000.model')"

Raffel et al. 2020, arXiv:1910.10683, section 3.1; the T5-Base of Fedus et al.
2021, arXiv:2101.03961, tables 1 and 9. 222,903,552 parameters, with ReLU FFNs
of width 3,072 and a tied head (table 9's GEGLU of width 2,048 with a head of
its own would make 247,577,856). Published: 124 GFLOPs forward a sequence,
negative log perplexity -1.731 after 100k steps, -1.556 after 500k; 1,600
sequences per second on 32 TPUv3 cores. Not trained here.
"""

from configs import t5_family


def get_config(arg=''):
  """The config; `arg` must be ''."""
  return t5_family.t5('base', arg).lock()
