"""T5-Large, the dense baseline of Switch-Large.

  python -m experiments.train --config=configs/t5_large.py \\
      --workdir=/tmp/t5_large --config.data.dir=/data/tfds \\
      --config.data.tokenizer="sentencepiece(path='/data/cc_all.32000.model')"

Raffel et al. 2020, arXiv:1910.10683, section 3.7; the T5-Large of Fedus et al.
2021, arXiv:2101.03961, tables 1 and 9. 737,668,096 parameters, with ReLU FFNs
of width 4,096 and a tied head. Published: 425 GFLOPs forward a sequence,
negative log perplexity -1.550 after 100k steps, -1.350 after 500k; 470
sequences per second on 32 TPUv3 cores, 131.1 hours to -1.50. Not trained here.
"""

from configs import t5_family


def get_config(arg=''):
  """The config; `arg` must be ''."""
  config = t5_family.t5('large', arg)
  config.model.remat = 'full'
  return config.lock()
