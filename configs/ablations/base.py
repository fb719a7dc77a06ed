"""What the pre-training studies start from; no study itself.

Their models are small enough that a study of 65 to 75 runs takes 40 minutes on
two CPU cores: a byte-level decoder of two blocks, the second sparse.
"""

from configs import quickstart

SIZES = ('quick', 'gpu', 'paper')


def check(size):
  """Raises ValueError for a size that studies do not have."""
  if size not in SIZES:
    raise ValueError(f'no size {size!r}; valid: {", ".join(SIZES)}')


def small(size, steps):
  """A decoder for 'quick' or 'gpu', unlocked.

  Args:
    size: 'quick' or 'gpu'.
    steps: {size: optimizer steps}.
  """
  config = quickstart.get_config()
  config.unlock()
  config.cpu_devices = 1
  config.mesh = 'auto()'
  large = size == 'gpu'
  config.model.update(
    num_layers=8 if large else 2,
    d_model=512 if large else 64,
    num_heads=8 if large else 2,
    d_head=64 if large else 32,
    d_ff=2048 if large else 256,
    # Products in tf32 or bf16 are not what differs between the arms.
    dtype='float32',
  )
  config.moe.update(
    layers='every_2',
    num_experts=32 if large else 8,
    d_ff=2048 if large else 256,
    # One sequence: who is dropped depends on its own place in it alone.
    group_size=512 if large else 128,
  )
  config.data.seq_len = 512 if large else 128
  total, peak = steps[size], 1e-3 if large else 4e-3
  config.train.update(
    steps=total,
    batch_size=64 if large else 16,
    optimizer='adamw(b1=0.9, b2=0.98, eps=1e-8, weight_decay=0.1)',
    schedule=f'cosine(peak={peak}, warmup={total // 10}, final=1e-4)',
    log_every=20,
    eval_every=0,
    checkpoint_every=max(total // 4, 500),
  )
  config.eval.update(
    batch_size=64 if large else 32, max_bytes=100_000 if large else 3_000
  )
  return config
