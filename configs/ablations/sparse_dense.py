"""Sparse against dense: more experts at the same FLOPs a token.

  python -m experiments.sweep --workdir=/tmp/moe_jax/sparse_dense \\
      --config=configs/ablations/sparse_dense.py:quick
  python -m experiments.verdict --workdir=/tmp/moe_jax/sparse_dense

Switch Transformer (Fedus et al. 2021, arXiv:2101.03961) figure 4, with the
numbers of table 7; ST-MoE (Zoph et al. 2022, arXiv:2202.08906) table 8. Every
arm sends a token through one FFN of the same width; what grows is the number of
FFNs that a router chooses from, and with it the router alone (E x d FLOPs).
Wall time stands in `step_time.py`.

`quick`: a byte-level decoder of two blocks, d = 64, the second block sparse,
dense and 2 to 64 experts; 7 arms, 3 seeds each, 25 minutes on 2 CPU
cores. `gpu`: 8 blocks, d = 512, 512 tokens; not yet run. `paper`: Switch-Base,
500,000 steps; described, not run.

The papers' numbers are losses in nats of tokens of 32,000 pieces after 500,000
steps of 2^20 tokens; ours are of bytes, after half a million of them.
"""

from configs import switch
from configs.ablations import base

STEPS = {'quick': 500, 'gpu': 8000}
SEEDS = {'quick': 3, 'gpu': 3, 'paper': 1}
# Compiling and evaluating included, on two cores that others used, too.
SECONDS = {'quick': 67, 'gpu': 460}

EXPERTS = {
  'quick': (2, 4, 8, 16, 32, 64),
  'gpu': (2, 4, 8, 16, 32, 64),
  'paper': (2, 4, 8, 16, 32, 64),
}


def get_config(arg='quick'):
  """The config that the arms start from: 8 experts."""
  size = arg or 'quick'
  base.check(size)
  if size == 'paper':
    return switch.get_config('base_8')
  config = base.small(size, STEPS)
  # Drops would grow with E in groups of one sequence; a group is the batch.
  config.moe.group_size = config.train.batch_size * config.data.seq_len
  config.eval.batch_size = config.train.batch_size
  config.moe.update(capacity_factor=2.0, eval_capacity_factor=2.0)
  return config.lock()


def sweep(add, size, config):
  """The dense model and one arm for each number of experts."""
  del config
  add('dense', {'moe.layers': 'none'})
  for count in EXPERTS[size]:
    add(f'experts_{count}', {'moe.num_experts': count})


SWITCH = 'Switch Transformer'
_LOSS, _HELD_OUT = 'train/loss', 'eval/loss'
_TO_DENSE = "steps_to_loss(of='dense')"
# Table 7's losses after 500,000 steps.
DENSE, LARGE = 1.636, {16: 1.505, 32: 1.474, 64: 1.444}

CLAIMS = (
  dict(
    name='8_experts_over_dense',
    paper=SWITCH,
    table='figure 4',
    sentence='Eight experts are better than the dense model of equal FLOPs.',
    metric=_HELD_OUT,
    direction='lower',
    smallest_effect=0.01,
    arms=('experts_8', 'dense'),
    seeds_needed=3,
  ),
  dict(
    name='64_experts_over_dense',
    paper=SWITCH,
    table='figure 4, table 7',
    sentence='64 experts are much better than the dense model of equal FLOPs.',
    metric=_HELD_OUT,
    direction='lower',
    smallest_effect=0.03,
    arms=('experts_64', 'dense'),
    published={'dense': DENSE, '64 experts': LARGE[64]},
    seeds_needed=3,
  ),
  dict(
    name='2_experts_over_dense',
    paper=SWITCH,
    table='appendix D, figure 12',
    sentence='Two experts are already better than the dense model.',
    metric=_HELD_OUT,
    direction='lower',
    smallest_effect=0.003,
    arms=('experts_2', 'dense'),
    seeds_needed=3,
  ),
  dict(
    name='8_over_2_experts',
    paper=SWITCH,
    table='figure 4',
    sentence='Eight experts are better than two.',
    metric=_HELD_OUT,
    direction='lower',
    smallest_effect=0.005,
    arms=('experts_8', 'experts_2'),
    seeds_needed=3,
  ),
  dict(
    name='32_over_8_experts',
    paper=SWITCH,
    table='figure 4',
    sentence='32 experts are better than eight.',
    metric=_HELD_OUT,
    direction='lower',
    smallest_effect=0.005,
    arms=('experts_32', 'experts_8'),
    seeds_needed=3,
  ),
  dict(
    name='64_over_32_experts',
    paper=SWITCH,
    table='figure 4, table 7',
    sentence='64 experts are a little better than 32.',
    metric=_HELD_OUT,
    direction='lower',
    smallest_effect=0.003,
    arms=('experts_64', 'experts_32'),
    published={'32 experts': LARGE[32], '64 experts': LARGE[64]},
    seeds_needed=3,
  ),
  dict(
    name='steps_to_dense_loss',
    paper=SWITCH,
    table='figure 5',
    sentence=(
      "64 experts reach the dense model's last training loss in fewer steps."
    ),
    metric=_TO_DENSE,
    direction='lower',
    smallest_effect=50,
    arms=('experts_64', 'dense'),
    published={'speed-up in steps': 7.5},
    seeds_needed=3,
  ),
  dict(
    name='parameters_grow',
    paper=SWITCH,
    table='table 7',
    sentence='64 experts have more parameters than the dense model.',
    metric='parameters',
    direction='higher',
    smallest_effect=1,
    arms=('experts_64', 'dense'),
    published={'dense': 223e6, '64 experts': 3.8e9},
    kind='deterministic',
  ),
)

COLUMNS = (
  (_LOSS, 'train loss', '.4f'),
  (_HELD_OUT, 'held-out loss', '.4f'),
  (_TO_DENSE, "steps to dense's loss", '.0f'),
  ('train/dropped', 'dropped', '.1%'),
  ('parameters', 'parameters', ',.0f'),
  ('flops_per_token', 'FLOPs a token', ',.0f'),
)

_COUNTS = EXPERTS['quick']
FIGURES = (
  dict(
    file='loss_by_experts.png',
    kind='lines',
    title='Loss by number of experts, equal FLOPs (Switch, figure 4)',
    x='experts (1 is dense)',
    y='held-out loss, nats',
    log_x=True,
    metric=_HELD_OUT,
    series={
      'after all steps': (
        (1, 'dense'),
        *((e, f'experts_{e}') for e in _COUNTS),
      )
    },
    published={'after all steps': ((1, DENSE), *LARGE.items())},
  ),
  dict(
    file='curves.png',
    kind='curves',
    title='Training loss by step (Switch, figure 4, right)',
    x='step',
    y='training loss, nats',
    series={'dense': 'dense'}
    | {f'{e} experts': f'experts_{e}' for e in (2, 8, 64)},
  ),
  dict(
    file='steps_to_dense.png',
    kind='lines',
    title="Steps to the dense model's last loss (Switch, figure 5)",
    x='experts (1 is dense)',
    y='steps',
    log_x=True,
    metric=_TO_DENSE,
    series={
      'steps': ((1, 'dense'), *((e, f'experts_{e}') for e in _COUNTS)),
    },
  ),
)

_FEW = (
  'A million bytes are 16 kB for each of 64 experts, and the gate of a top-1 '
  'expert begins at 1 / E, which scales down what it returns and learns: so '
  'early in training each further expert costs. The paper trains on 5 x 10^11 '
  'tokens.'
)
NOTES = {
  'quick': {
    '8_experts_over_dense': _FEW,
    '64_experts_over_dense': _FEW,
    '64_over_32_experts': _FEW,
    'steps_to_dense_loss': _FEW,
  },
}
