"""ST-MoE-32B: 269 billion parameters, the FLOPs of a dense 32B.

  python -m experiments.train --config=configs/st_moe_32b.py \\
      --workdir=/tmp/st_moe_32b --config.data.dir=/data/tfds \\
      --config.data.tokenizer="sentencepiece(path='/data/cc_all.32000.model')"

Zoph et al. 2022, arXiv:2202.08906, table 11: top-2 of 64 GEGLU experts in every
fourth FFN, each followed by a dense FFN, groups of 4,096 encoder tokens.
269,104,613,376 parameters, with a head of its own, in 24 blocks a stack (27
"layers", as in ST-MoE-L). Published: 20.2 TFLOPs forward a sequence, 1.5T
tokens of pre-training, 4.244 s a step of 2^20 tokens at capacity factor 1.25,
4.819 s at 2.0 (table 9), on TPUs; the released configuration divides them as 64
for data and 16 for the model. Not trained here.

  python -m experiments.describe --config=configs/st_moe_32b.py \\
      --mesh='exact(data=4,expert=16,model=16)'
"""

from configs import t5_family


def get_config(arg=''):
  """The config; `arg` must be ''."""
  config = t5_family.st_moe('32b', arg, num_experts=64, sequences=8)
  config.model.remat = 'full'
  config.train.steps = 1_430_000
  return config.lock()
