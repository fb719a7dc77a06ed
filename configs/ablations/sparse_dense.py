"""Sparse against dense: more experts at the same FLOPs a token.

  python -m experiments.sweep --workdir=/tmp/moe_jax/sparse_dense \\
      --config=configs/ablations/sparse_dense.py:reference
  python -m experiments.verdict --workdir=/tmp/moe_jax/sparse_dense

Switch Transformer (Fedus et al. 2021, arXiv:2101.03961) figure 4, with the
numbers of table 7; ST-MoE (Zoph et al. 2022, arXiv:2202.08906) table 8. Every
arm sends a token through FFN weights of the same size; what grows is the number
of FFNs that a router chooses from, and with it the router alone (E x d FLOPs).
Wall time stands in `step_time.py`.

`reference`: the decoders of `configs/reference.py`, 4.2 million bytes a run;
beside the number of experts their size (`fine`: 32 half as wide, top-2;
`finer`: 64 a quarter as wide, top-4), the router (`hash`), and the length of
the run: a quarter to four times the steps, each with a schedule of its own.
What a mixture saves is read off the dense runs: the steps that the dense model
needs for the loss of the mixture, between its runs in the logarithm of steps.

`quick`: a byte-level decoder of two blocks, d = 64, the second block sparse, a
million bytes. `gpu`: 8 blocks, d = 512, 512 tokens; not yet run. `paper`:
Switch-Base, 500,000 steps; described, not run. At `reference` 76 runs, 75
minutes on 2 CPU cores. Dense runs of eight times the steps were added when some
seeds were as good as those of four, and biases that move three and ten times as
fast when the one of the paper was worse than a loss; then all ran anew, from
one version of the code.

The papers' numbers are losses in nats of tokens of 32,000 pieces after 500,000
steps of 2^20 tokens; ours are of bytes.
"""

from configs import switch
from configs.ablations import base

STEPS = {'reference': 1024, 'quick': 500, 'gpu': 8000, 'paper': 500_000}
SEEDS = {'reference': 3, 'quick': 3, 'gpu': 3, 'paper': 1}
# Compiling and evaluating included, on one of two cores.
SECONDS = {'reference': 112, 'quick': 67, 'gpu': 460}

EXPERTS = (2, 4, 8, 16, 32, 64)
FASTER = (0.003, 0.01)
# Lengths of a run, as shares of STEPS.
LENGTHS = {'quarter': 0.25, 'half': 0.5, 'double': 2, 'fourfold': 4}
LONG = ('dense', 'experts_16', 'finer', 'hash')
# What is as good as eight times the steps of the dense model is told apart.
LONGEST = {'eightfold': 8}


def get_config(arg='reference'):
  """The config that the arms start from: 8 experts, 16 at `reference`."""
  size = arg or 'reference'
  base.check(size)
  if size == 'paper':
    return switch.get_config('base_8')
  config = base.small(size, STEPS)
  if size == 'reference':
    return config.lock()
  # Drops would grow with E in groups of one sequence; a group is the batch.
  config.moe.group_size = config.train.batch_size * config.data.seq_len
  config.eval.batch_size = config.train.batch_size
  config.moe.update(capacity_factor=2.0, eval_capacity_factor=2.0)
  return config.lock()


def models(config):
  """Fields of each model that has the FLOPs of the dense one."""
  cut = lambda experts, k: {
    'moe.num_experts': experts,
    'moe.d_ff': config.moe.d_ff // k,
    'moe.router': f'top_k(k={k}, renormalize=False)',
    # Causal with two choices, too; it matters where capacity binds.
    'moe.seating': 'token_major()',
  }
  sixteen = {'moe.num_experts': 16}
  hashed = sixteen | {'moe.router': 'hash()', 'moe.balance': ()}
  return {
    'dense': {'moe.layers': 'none'},
    **{f'experts_{n}': {'moe.num_experts': n} for n in EXPERTS},
    'fine': cut(32, 2),
    'finer': cut(64, 4),
    'hash': hashed,
    # Why a hash of the byte can be ahead of a learned router: another map;
    # balance without a loss that pulls on the router; experts that are equal
    # at the start, so that a token that changes its expert loses nothing.
    'hash_2': hashed | {'moe.router': 'hash(seed=2)'},
    'loss_free': sixteen
    | {'moe.balance': ('loss_free_bias(rate=0.001)', 'z_loss(weight=0.001)')},
    'equal_start': sixteen | {'moe.identical_experts': True},
    # Whether a bias is behind because it moves too slowly for so few steps.
    **{
      f'loss_free_{rate}': sixteen
      | {
        'moe.balance': (f'loss_free_bias(rate={rate})', 'z_loss(weight=0.001)')
      }
      for rate in FASTER
    },
  }


def sweep(add, size, config):
  """The models, and four of them by length of the run."""
  made = models(config)
  # Points of a figure that no claim is about have one seed.
  named = str([(c['arms'], c['metric']) for c in CLAIMS])
  few = lambda name: {} if f"'{name}'" in named else {'seeds': 1}
  for name, fields in made.items():
    add(name, fields | base.rate(size, name, STEPS[size]), **few(name))
  for name in LONG:
    more = LONGEST if name == 'dense' else {}
    for label, share in (LENGTHS | more).items():
      steps = int(share * STEPS[size])
      fields = {'train.steps': steps, 'train.checkpoint_every': steps}
      if size != 'paper':  # its rate falls with the root of the step
        train = base.small(size, {size: steps}).train
        fields['train.schedule'] = train.schedule
      fields |= base.rate(size, name, steps)
      whole = f'{name}_{label}'
      add(whole, made[name] | fields, **few(whole))


SWITCH = 'Switch Transformer'
_LOSS, _HELD_OUT = 'train/loss', 'eval/loss'
_TO_DENSE = "steps_to_loss(of='dense')"
_SPEED_UP = (
  'speed_up(over=('
  "'dense_quarter', 'dense_half', 'dense', 'dense_double', 'dense_fourfold'))"
)
_BEYOND = _SPEED_UP[:-2] + ", 'dense_eightfold'))"
# Table 7's losses after 500,000 steps.
DENSE, LARGE = 1.636, {16: 1.505, 32: 1.474, 64: 1.444}


def _less(a, b):
  return f"mean_over(metric='{_HELD_OUT}', arms=('{a}',), minus=('{b}',))"


def _claim(name, a, b, smallest, sentence, metric=_HELD_OUT, **fields):
  base = dict(paper=SWITCH, table='figure 4', direction='lower')
  own = dict(name=name, arms=(a, b), smallest_effect=smallest)
  return base | own | dict(sentence=sentence, metric=metric) | fields


def _ours(*args, **fields):
  return _claim(*args, added='2026-11-29', **fields)


def _later(*args, **fields):
  own = {'table': 'none: a follow-up', 'added': '2026-11-30'}
  return _claim(*args, **own, **fields)


CLAIMS = (
  _claim(
    *('8_experts_over_dense', 'experts_8', 'dense', 0.01),
    'Eight experts are better than the dense model of equal FLOPs.',
  ),
  _claim(
    *('64_experts_over_dense', 'experts_64', 'dense', 0.03),
    '64 experts are much better than the dense model of equal FLOPs.',
    table='figure 4, table 7',
    published={'dense': DENSE, '64 experts': LARGE[64]},
  ),
  _claim(
    *('2_experts_over_dense', 'experts_2', 'dense', 0.003),
    'Two experts are already better than the dense model.',
    table='appendix D, figure 12',
  ),
  _claim(
    *('8_over_2_experts', 'experts_8', 'experts_2', 0.005),
    'Eight experts are better than two.',
  ),
  _claim(
    *('32_over_8_experts', 'experts_32', 'experts_8', 0.005),
    '32 experts are better than eight.',
  ),
  _claim(
    *('64_over_32_experts', 'experts_64', 'experts_32', 0.003),
    '64 experts are a little better than 32.',
    table='figure 4, table 7',
    published={'32 experts': LARGE[32], '64 experts': LARGE[64]},
  ),
  _claim(
    *('steps_to_dense_loss', 'experts_64', 'dense', 50),
    "64 experts reach the dense model's last training loss in fewer steps.",
    _TO_DENSE,
    table='figure 5',
    published={'speed-up in steps': 7.5},
  ),
  _claim(
    *('parameters_grow', 'experts_64', 'dense', 1),
    '64 experts have more parameters than the dense model.',
    'parameters',
    table='table 7',
    direction='higher',
    kind='deterministic',
    published={'dense': 223e6, '64 experts': 3.8e9},
  ),
  _ours(
    *('16_experts_over_dense', 'experts_16', 'dense', 0.03),
    '16 experts are better than the dense model of equal FLOPs.',
  ),
  _ours(
    *(
      '16_experts_over_dense_double',
      'experts_16_double',
      'dense_double',
      0.03,
    ),
    'After twice the steps, too, 16 experts are better than the dense model.',
  ),
  _ours(
    *('gain_grows_with_tokens', 'experts_16_double', 'experts_16_half', 0.01),
    'The gain of 16 experts is larger after twice the steps than after half.',
    tuple(_less(f'experts_16_{n}', f'dense_{n}') for n in ('double', 'half')),
  ),
  _ours(
    *('speed_up_of_16_experts', 'experts_16', 'dense', 1.0),
    'The dense model needs twice the tokens for the loss of 16 experts.',
    _SPEED_UP,
    table='figure 5',
    direction='higher',
    published={'64 experts, in steps': 7.5},
  ),
  _ours(
    *('speed_up_of_the_best', 'finer', 'dense', 2.0),
    'It needs three times the tokens for that of 64 fine-grained experts.',
    _SPEED_UP,
    table='figure 5',
    direction='higher',
    published={'64 experts, in steps': 7.5},
  ),
  _ours(
    *('fine_over_16', 'fine', 'experts_16', 0.01),
    '32 experts half as wide, two a token, are better than 16.',
    paper='DeepSeekMoE',
    table='figure 3',
  ),
  _ours(
    *('finer_over_fine', 'finer', 'fine', 0.005),
    '64 experts a quarter as wide, four a token, are better still.',
    paper='DeepSeekMoE',
    table='figure 3',
  ),
  _ours(
    *('learned_over_hash', 'experts_16', 'hash', 0.01),
    'A learned router is better than a hash of the token.',
    paper='Hash Layers',
    table='the reverse of their claim',
  ),
  _ours(
    *('learned_catches_up', 'experts_16_double', 'experts_16', 0.01),
    'The lead of the hash is smaller after twice the steps.',
    tuple(_less(f'experts_16{n}', f'hash{n}') for n in ('_double', '')),
    paper='Hash Layers',
    table='section 5',
  ),
  _ours(
    *('any_hash', 'hash_2', 'hash', 0.03),
    'Another hash of the token is as good.',
    paper='Hash Layers',
    table='section 5',
    direction='equal',
  ),
  _ours(
    *('loss_free_over_auxiliary', 'loss_free', 'experts_16', 0.01),
    '16 experts are better with a bias that balances than with a loss.',
    paper='Loss-Free Balancing',
    table='table 2',
  ),
  _ours(
    *('equal_start_over_own', 'equal_start', 'experts_16', 0.01),
    '16 experts that are equal at the start are better.',
    paper='V-MoE',
    table='their code',
  ),
  # Of the best some seeds are as good as the dense model ever is.
  *(
    _later(
      *(f'speed_up_of_{name}_beyond', arm, 'dense', smallest),
      f'By dense runs of up to eight times the steps: {sentence}',
      _BEYOND,
      direction='higher',
    )
    for name, arm, smallest, sentence in (
      ('16_experts', 'experts_16', 1.0, 'twice the tokens for 16 experts.'),
      ('the_best', 'finer', 2.0, 'three times for 64 fine-grained ones.'),
    )
  ),
  *(
    _later(
      *(f'loss_free_{rate}_over_auxiliary', f'loss_free_{rate}', 'experts_16'),
      0.01,
      f'So they are with a bias that moves by {rate} a step.',
      paper='Loss-Free Balancing',
    )
    for rate in FASTER
  ),
)

COLUMNS = (
  (_LOSS, 'train loss', '.4f'),
  (_HELD_OUT, 'held-out loss', '.4f'),
  (_TO_DENSE, "steps to dense's loss", '.0f'),
  (_BEYOND, 'speed-up in tokens', '.2f'),
  ('train/dropped', 'dropped', '.1%'),
  ('parameters', 'parameters', ',.0f'),
  ('flops_per_token', 'FLOPs a token', ',.0f'),
)


def _by_length(name):
  lengths = LENGTHS | (LONGEST if name == 'dense' else {})
  arms = {1: name} | {v: f'{name}_{k}' for k, v in lengths.items()}
  return tuple(sorted(arms.items()))


FIGURES = (
  dict(
    file='loss_by_length.png',
    sizes=('reference',),
    kind='lines',
    title='Loss by length of the run, equal FLOPs a token',
    x='steps, in those of the other arms',
    y='held-out loss, nats',
    log_x=True,
    metric=_HELD_OUT,
    series={
      'dense': _by_length('dense'),
      '16 experts': _by_length('experts_16'),
      '64 a quarter as wide': _by_length('finer'),
      '16 by a hash': _by_length('hash'),
    },
  ),
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
        *((e, f'experts_{e}') for e in EXPERTS),
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
      'steps': ((1, 'dense'), *((e, f'experts_{e}') for e in EXPERTS)),
    },
  ),
)

_FEW = (
  'A million bytes are 16 kB for each of 64 experts, and the gate of a top-1 '
  'expert begins at 1 / E, which scales down what it returns and learns: so '
  'early in training each further expert costs. The paper trains on 5 x 10^11 '
  'tokens.'
)
_COSTS = ('8_experts_over_dense', '64_experts_over_dense', '64_over_32_experts')
_MORE = (
  'Four million bytes are 65 kB for each of 64 experts; after twice as many '
  'they are level with 16 (`scaling.py`).'
)
_HASH = (
  'So Hash Layers claim. Here there is no router to learn first: any map will '
  'do, equal experts at the start are no help to a router, the lead shrinks by '
  '0.027 after twice the bytes, and over 2,048 pieces in place of bytes from '
  '0.122 to 0.038 bits a byte (`tokenizers.py`).'
)
_SLOW = 'The bias is slow: three times as fast it is level with the loss.'
NOTES = {
  'quick': dict.fromkeys((*_COSTS, 'steps_to_dense_loss'), _FEW),
  'reference': {
    '64_over_32_experts': _MORE,
    'learned_over_hash': _HASH,
    'loss_free_over_auxiliary': _SLOW,
  },
}
