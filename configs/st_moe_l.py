"""ST-MoE-L: 4.1 billion parameters at the FLOPs of T5-Large.

  python -m experiments.train --config=configs/st_moe_l.py \\
      --workdir=/tmp/st_moe_l --config.data.dir=/data/tfds \\
      --config.data.tokenizer="sentencepiece(path='/data/cc_all.32000.model')"

Zoph et al. 2022, arXiv:2202.08906, table 11 and section 7: top-2 of 32 GEGLU
experts in every fourth FFN, each followed by a dense FFN, groups of 2,048
encoder and 456 decoder tokens. 4,105,444,352 parameters, with a head of its
own: 24 blocks a stack, six of them with two FFNs, which the table calls 27
layers. The multiplicative bias of appendix C is not in that count. Published:
645 GFLOPs forward a sequence; 2.397 s a step of 2^20 tokens at capacity factor
1.25, 2.447 s at 2.0 (table 9), on hardware that is not told. Not trained here.
"""

from configs import t5_family


def get_config(arg=''):
  """The config; `arg` must be ''."""
  config = t5_family.st_moe('large_geglu', arg, num_experts=32, sequences=4)
  config.model.remat = 'full'
  return config.lock()
