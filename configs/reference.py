"""The reference models: small decoders in a regime in which mixtures win.

  python -m experiments.train --config=configs/reference.py:moe_16 \\
      --workdir=/tmp/moe_jax/moe_16
  python -m experiments.train --config=configs/reference.py:dense \\
      --workdir=/tmp/moe_jax/dense

Two blocks, all sparse, d = 32, one head, bytes; 32 rows of 128 tokens a step
and 1,024 steps are 4.2 million bytes. Every model sends a token through as many
FFN weights as the dense one does; what differs is how many there are to choose
from. One device, dropless, so that drops are nobody's reason. Bytes, because
they show more of it: with a BPE of 2,048 pieces a mixture gains a quarter as
many bits a byte in as many steps (configs/ablations/tokenizers.py). Rates were
chosen on every second validation document of a domain; what is said of a model
is of the others (`eval.documents`).

Held-out loss in nats a byte by the rate's peak, on the half that tunes, seed 7
(configs/ablations/rates.py; the text is 26 MB in 23 domains):

  | peak   | 16e-3  | 32e-3  | 64e-3  | 128e-3 |
  | dense  | 1.9236 | 1.9009 | 1.8913 | 1.9206 |
  | moe_16 | 1.8531 | 1.8271 | 1.8680 | 1.9350 |
  | fine   | 1.8314 | 1.7993 | 1.7956 | 1.9143 |
  | finer  | 1.7935 | 1.7692 | 1.7795 | 1.8734 |
  | hash   | 1.7612 | 1.7412 | 1.7542 | 1.7539 |

What to expect on the half that judges: nats a byte, seeds 0, 1 and 2, with the
95 % interval of their mean (t, two degrees of freedom; of pairs with the same
seed it is narrower); experiments/results/sparse_dense, on the same text.

  |        | 4.2 million bytes | 8.4 million     |
  | dense  | 1.886 +- 0.023    | 1.825 +- 0.004  |
  | moe_8  | 1.812 +- 0.024    |                 |
  | moe_16 | 1.808 +- 0.010    | 1.694 +- 0.026  |
  | moe_32 | 1.819 +- 0.037    |                 |
  | fine   | 1.791 +- 0.023    |                 |
  | finer  | 1.777 +- 0.023    | 1.665, one seed |
  | hash   | 1.724 +- 0.016    | 1.636 +- 0.008  |
"""

from configs import base

D_FF = 128
_SWITCH_LOSSES = ('switch_loss(weight=0.01)', 'z_loss(weight=0.001)')


def _mixture(count, cut=1, router='switch()', balance=_SWITCH_LOSSES):
  """Fields of `count` experts, each a `cut`-th as wide as the dense FFN."""
  return {
    'layers': 'all',
    'num_experts': count,
    'd_ff': D_FF // cut,
    'router': router,
    'balance': balance,
  }


# Of `moe`, by variant. Fine-grained experts have raw weights, as OLMoE's.
VARIANTS = {
  'dense': {'layers': 'none'},
  **{f'moe_{e}': _mixture(e) for e in (8, 16, 32)},
  'fine': _mixture(32, 2, 'top_k(k=2, renormalize=False)'),
  'finer': _mixture(64, 4, 'top_k(k=4, renormalize=False)'),
  'hash': _mixture(16, 1, 'hash()', ()),
}
STEPS, BATCH, LENGTH = 1024, 32, 128
# Of the learning rate; the best of each kind.
PEAK = 32e-3
PEAKS = dict.fromkeys(VARIANTS, PEAK) | dict.fromkeys(('dense', 'fine'), 64e-3)
# Of the validation documents: where rates are chosen, and where models are
# judged.
TUNING, JUDGING = 'even', 'odd'


def schedule(steps, peak=PEAK):
  """Cosine to nothing after a tenth of warm-up."""
  return f'cosine(peak={peak}, warmup={max(steps // 10, 1)}, final=0.0)'


def fields(variant, steps=STEPS):
  """What makes a study's arm that model, at its rate, by dotted field."""
  own = {f'moe.{name}': value for name, value in VARIANTS[variant].items()}
  return own | {'train.schedule': schedule(steps, PEAKS[variant])}


def get_config(arg='moe_16'):
  """The config; `arg` is one of VARIANTS."""
  variant = arg or 'moe_16'
  if variant not in VARIANTS:
    raise ValueError(
      f'reference has no variant {variant!r}; valid: {", ".join(VARIANTS)}'
    )
  config = base.get_config()
  config.model.update(
    num_layers=2, d_model=32, num_heads=1, d_head=32, d_ff=D_FF
  )
  # A scan copies what it keeps for the way back: a tenth of these steps.
  config.model.scan = False
  config.moe.update(
    VARIANTS[variant],
    dispatch='gather_reduce()',
    group_size=BATCH * LENGTH,
    capacity_factor=0,
    eval_capacity_factor=0,
  )
  config.data.seq_len = LENGTH
  config.train.update(
    steps=STEPS,
    batch_size=BATCH,
    optimizer='adamw(b1=0.9, b2=0.98, eps=1e-8, weight_decay=0.1)',
    schedule=schedule(STEPS, PEAKS[variant]),
    log_every=16,
    checkpoint_every=STEPS,
    keep=1,
  )
  config.eval.update(batch_size=BATCH, documents=JUDGING)
  return config.lock()
