"""Deeper reference models, for looking inside and for taking apart.

  python -m experiments.train --config=configs/deep.py:loss_free \\
      --workdir=/tmp/moe_jax/deep/loss_free
  python -m experiments.evaluate --workdir=/tmp/moe_jax/deep/loss_free --step=16

Four blocks, all sparse, d = 64, a BPE of 2,048 pieces; 32 experts a quarter as
wide as the dense FFN, each token to 4 of them by normalised sigmoids. `aux` is
balanced by the loss over all choices (Fedus et al. 2021, arXiv:2101.03961), at
OLMoE's weight (arXiv:2409.02060); `loss_free` by DeepSeek-V3's bias and its
sequence-wise loss (arXiv:2412.19437); `dense` has as many active FFN weights.
What is not here is as in configs/reference.py: dropless, one device.

1,600 steps of 4,096 tokens: about 14 minutes of one core for a mixture, 10 for
`dense`. Checkpoints are kept for ever at 1, 2, 5, 10, 20, 40, 70 and 100 % of
the steps; a mixture's is 14 MB. They are not committed: one command trains a
set of models and seeds, see configs/ablations/references.py.
"""

from configs import reference

PIECES, LAYERS, D_MODEL, D_FF = 2048, 4, 64, 256
EXPERTS, CUT = 32, 4
STEPS = 1600
PEAK = 16e-3  # not swept: the best for half the width, halved
KEPT = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)

_ROUTED = {
  'layers': 'all',
  'num_experts': EXPERTS,
  'd_ff': D_FF // CUT,
  'router': f'sigmoid_top_k(k={CUT}, scaling=1.0)',
}
# Of `moe`, by variant.
VARIANTS = {
  'dense': {'layers': 'none'},
  'aux': _ROUTED | {'balance': ("switch_loss(weight=0.01, count='all')",)},
  'loss_free': _ROUTED
  | {'balance': ('loss_free_bias(rate=0.001)', 'sequence_loss(weight=0.0001)')},
}


def fields(variant):
  """What makes a study's arm that model, by dotted field."""
  return {f'moe.{name}': value for name, value in VARIANTS[variant].items()}


def get_config(arg='loss_free'):
  """The config; `arg` is one of VARIANTS."""
  variant = arg or 'loss_free'
  if variant not in VARIANTS:
    raise ValueError(
      f'deep has no variant {variant!r}; valid: {", ".join(VARIANTS)}'
    )
  config = reference.get_config().unlock()
  config.model.update(
    num_layers=LAYERS, d_model=D_MODEL, num_heads=2, d_head=32, d_ff=D_FF
  )
  config.moe.update(VARIANTS[variant])
  config.data.tokenizer = f'bpe(size={PIECES})'
  config.train.update(
    steps=STEPS,
    schedule=reference.schedule(STEPS, PEAK),
    checkpoint_every=STEPS // 4,
    keep_at=KEPT,
  )
  return config.lock()
