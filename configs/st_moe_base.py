"""ST-MoE at the width of T5-Base, with 16 experts; in no paper.

  python -m experiments.train --config=configs/st_moe_base.py \\
      --workdir=/tmp/st_moe_base --config.data.dir=/data/tfds \\
      --config.data.tokenizer="sentencepiece(path='/data/cc_all.32000.model')"

A sparse configuration that T5X ships beside the paper's (Zoph et al. 2022,
arXiv:2202.08906): top-2 of 16 GEGLU experts in every fourth FFN, each followed
by a dense FFN, and a z-loss of 1e-4 where the paper has 1e-3. The layers are
the paper's, not T5X's (whose gates are not renormalised). 700,641,024
parameters. No published results. Not trained here.
"""

from configs import t5_family


def get_config(arg=''):
  """The config; `arg` must be ''."""
  config = t5_family.st_moe(
    'base_geglu', arg, num_experts=16, sequences=8, z_loss=1e-4
  )
  return config.lock()
