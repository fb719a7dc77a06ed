"""A byte-level Switch language model on the standard library's own text.

  python -m experiments.train --config=configs/quickstart.py \\
      --workdir=/tmp/moe_jax/quickstart
  python -m experiments.train --config=configs/quickstart.py:dense \\
      --workdir=/tmp/moe_jax/dense

Switch layers (Fedus et al. 2021, arXiv:2101.03961) in every other block, eight
experts, top-1, capacity factor 1.25 in training and 2.0 in evaluation. On CPU
it simulates 8 devices (data=2, expert=4); on a GPU or TPU the same config runs
on the devices found. `:dense` is the twin with the same FLOPs a token (less the
router's): a top-1 expert is as wide as the dense FFN.

About 2 minutes of training on 2 CPU cores. Expected, seed 0, Python 3.11: see
the README, whose table has the bits per byte of both by domain.
"""

from configs import base

VARIANTS = ('moe', 'dense')


def get_config(arg='moe'):
  """The config; `arg` is 'moe' or 'dense'."""
  variant = arg or 'moe'
  if variant not in VARIANTS:
    raise ValueError(
      f'quickstart has no variant {variant!r}; valid: {", ".join(VARIANTS)}'
    )
  config = base.get_config()
  config.cpu_devices = 8
  config.mesh = 'auto(expert=4)'
  config.model.update(
    num_layers=4, d_model=128, num_heads=2, d_head=64, d_ff=512
  )
  config.moe.update(
    layers='every_2' if variant == 'moe' else 'none',
    num_experts=8,
    d_ff=512,
    router='switch()',
    balance=('switch_loss(weight=0.01)', 'z_loss(weight=0.001)'),
    dispatch='scatter()',
    group_size=256,
    capacity_factor=1.25,
    eval_capacity_factor=2.0,
  )
  config.data.seq_len = 256
  config.train.update(
    steps=500,
    batch_size=8,
    schedule='cosine(peak=4e-3, warmup=50, final=2e-4)',
    checkpoint_every=250,
  )
  return config.lock()
