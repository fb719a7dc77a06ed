"""A small byte-level mixture of experts on the standard library's own text.

  python -m experiments.train --config=configs/quickstart.py \\
      --workdir=/tmp/moe_jax/quickstart
  python -m experiments.train --config=configs/quickstart.py:dense \\
      --workdir=/tmp/moe_jax/dense

The models of `configs/reference.py` with a capacity, on 8 simulated devices
(data=2, expert=4); on a GPU or TPU the same config runs on the devices found.
`moe`: 32 experts half as wide as the dense FFN, each token to two of them, by
their raw softmax weights (as OLMoE, arXiv:2409.02060). `top_1`: 16 experts as
wide as it, each token to one (Switch Transformer, arXiv:2101.03961). `dense`:
their twin of the same FLOPs a token (less the router's). A token's second
choice waits for the first ones of those before it alone (`token_major()`): else
the drops would tell of the future.

About 2 minutes of training on 2 CPU cores. Expected, seed 0, Python 3.11: see
the README, which has the bits per byte of all three.
"""

from configs import base

# Of `moe`, by variant.
VARIANTS = {
  'moe': {},
  'top_1': {
    'num_experts': 16,
    'd_ff': 128,
    'router': 'switch()',
    'seating': 'rank_major()',
  },
  'dense': {'layers': 'none'},
}


def get_config(arg='moe'):
  """The config; `arg` is one of VARIANTS."""
  variant = arg or 'moe'
  if variant not in VARIANTS:
    raise ValueError(
      f'quickstart has no variant {variant!r}; valid: {", ".join(VARIANTS)}'
    )
  config = base.get_config()
  config.cpu_devices = 8
  config.mesh = 'auto(expert=4)'
  config.model.update(
    num_layers=2, d_model=32, num_heads=1, d_head=32, d_ff=128
  )
  config.model.scan = False  # as in configs/reference.py
  config.moe.update(
    layers='all',
    num_experts=32,
    d_ff=64,
    router='top_k(k=2, renormalize=False)',
    balance=('switch_loss(weight=0.01)', 'z_loss(weight=0.001)'),
    dispatch='scatter()',
    group_size=512,
    capacity_factor=1.25,
    eval_capacity_factor=4.0,
    seating='token_major()',
  )
  config.moe.update(VARIANTS[variant])
  config.data.seq_len = 128
  config.train.update(
    steps=1200,
    batch_size=64,
    schedule='cosine(peak=32e-3, warmup=100, final=0.0)',
    checkpoint_every=400,
  )
  return config.lock()
