"""Stability pieces: initialisation, precision, z-loss, noise, norms, balance.

  python -m experiments.sweep --workdir=/tmp/moe_jax/stability \\
      --config=configs/ablations/stability.py:reference
  python -m experiments.verdict --workdir=/tmp/moe_jax/stability

Switch Transformer (Fedus et al. 2021, arXiv:2101.03961) tables 2, 3 and 11 and
section 2.2; ST-MoE (Zoph et al. 2022, arXiv:2202.08906) tables 2, 3 and 4 and
appendix B. One piece at a time is taken out of, or put into, a baseline that
has all that the papers settled on: initialisation at a tenth of the variance, a
float32 router, z-loss 0.001, balance loss 0.01, GEGLU, RMS norms with gains.

`reference`: the decoder of `configs/reference.py:moe_16` with GEGLU experts at
capacity factor 1.25, a group being the batch of 4,096 tokens, 4.2 million bytes
a run; 19 arms, 5 seeds where a claim about quality is theirs, else 3, 70
minutes on 2 CPU cores. `quick`: a byte-level decoder of two blocks, 8 experts,
top-1, d = 64; 35 minutes. `gpu`: 8 blocks, 32 experts, d = 512, 512 tokens; not
yet run. `paper`: T5-XL's width is not among our sizes, so the pieces are
described at ST-MoE-L's, 20,000 steps; not run.

That models diverge is not to be seen at these sizes (the paper says so of its
own small ones); what the pieces cost or win is. So that there is something to
protect from, four arms, `fast_...`, have eight times the rate. It was chosen
before they ran, by `init_1.0` with seed 100 and 256 steps: 2.37 nats at the
rate itself, 2.43 at four times, 2.97 at sixteen times.
"""

from configs import st_moe
from configs.ablations import base

STEPS = {'reference': 1024, 'quick': 260, 'gpu': 4000}
SEEDS = {'reference': 5, 'quick': 3, 'gpu': 3, 'paper': 1}
# Compiling and evaluating included, on two cores that others used, too.
SECONDS = {'reference': 91, 'quick': 36, 'gpu': 280}

GEGLU, RELU = "glu(activation='gelu')", "mlp(activation='relu')"
# Three matrices of two thirds of the width hold what two matrices hold.
WIDTHS = {
  'reference': {'glu': 84, 'relu': 126},
  'quick': {'glu': 168, 'relu': 252},
  'gpu': {'glu': 1360, 'relu': 2040},
  'paper': {'glu': 2816, 'relu': 4224},
}
FASTER = 8
Z, BALANCE = 'z_loss(weight={})', 'switch_loss(weight={})'


def get_config(arg='reference'):
  """The config that the arms start from: with all pieces."""
  size = arg or 'reference'
  base.check(size)
  if size == 'paper':
    config = st_moe.get_config('l').unlock()
    config.train.steps = 20_000
    config.moe.router = 'switch()'
  else:
    config = base.small(size, STEPS)
    width = WIDTHS[size]['glu']
    config.model.update(ffn=GEGLU, d_ff=width, init_scale=0.1)
    config.moe.update(experts=GEGLU, d_ff=width)
    if size == 'reference':
      config.moe.update(capacity_factor=1.25, eval_capacity_factor=2.0)
  config.moe.balance = (BALANCE.format(0.01), Z.format(0.001))
  config.eval.probes = ('logits()',)
  return config.lock()


def sweep(add, size, config):
  """19 arms."""
  fast = {'train.schedule': _faster(config.train.schedule)}
  relu = {'model.ffn': RELU, 'moe.experts': RELU} | dict.fromkeys(
    ('model.d_ff', 'moe.d_ff'), WIDTHS[size]['relu']
  )
  balance = lambda weight, z=0.001: {
    'moe.balance': (BALANCE.format(weight), Z.format(z))
  }
  bf16 = {'model.dtype': 'bfloat16'}
  bf16_router = bf16 | {'moe.router': 'switch(selective_precision=False)'}
  # Of arms that no claim about quality is about.
  few = {'seeds': 3} if size == 'reference' else {}
  add('baseline', {'model.dtype': 'float32'})
  add('init_1.0', {'model.init_scale': 1.0, 'model.dtype': 'float32'})
  add('bf16_selective', bf16)
  add('bf16_router', bf16_router)
  add('no_z_loss', balance(0.01, 0.0))
  add('z_loss_0.01', balance(0.01, 0.01), **few)
  add('jitter', {'moe.router': 'switch(jitter=0.01)'})
  add('sampled', {'moe.router': 'switch(sample=1.0)'})
  add('no_norm_scale', {'model.norm_scale': False})
  add('relu', relu)
  add('dropout', {'model.dropout': 0.1})
  add('no_balance', balance(0.0), **few)
  add('balance_0.1', balance(0.1))
  add('fast', {'model.dtype': 'float32'} | fast)
  add('fast_init_1.0', {'model.init_scale': 1.0} | fast)
  add('fast_bf16_selective', bf16 | fast)
  add('fast_bf16_router', bf16_router | fast)
  one = {'model.init_scale': 1.0}
  add('init_1.0_no_norm_scale', one | {'model.norm_scale': False})
  add('init_1.0_relu', one | relu)


def _faster(schedule):
  """The schedule with FASTER times its peak."""
  head, _, rest = schedule.partition('peak=')
  peak, _, rest = rest.partition(',')
  return f'{head}peak={FASTER * float(peak):g},{rest}'


SWITCH, ST_MOE = 'Switch Transformer', 'ST-MoE'
_LOSS, _HELD_OUT = 'train/loss', 'eval/loss'
_LOGSUMEXP, _Z = 'probe/logits/logsumexp', 'train/balance/z_loss'
_DROPPED, _LOAD = 'train/dropped', 'train/load_max'


def _claim(
  paper, table, metric, name, sentence, direction, effect, arms, **more
):
  return dict(
    name=name,
    paper=paper,
    table=table,
    sentence=sentence,
    metric=metric,
    direction=direction,
    smallest_effect=effect,
    arms=arms,
    **more,
  )


_FIXED = {'kind': 'deterministic'}

CLAIMS = (
  _claim(
    *(SWITCH, 'table 3', _HELD_OUT, 'init_mean'),
    'Initialising at 0.1 of the variance is better early than at 1.0.',
    *('lower', 0.02, ('baseline', 'init_1.0')),
    published={'0.1': 2.72, '1.0': 3.6},
  ),
  _claim(
    *(SWITCH, 'table 3', "deviation(metric='eval/loss')", 'init_variance'),
    'Initialising at 0.1 varies less from seed to seed than at 1.0.',
    *('lower', 0.002, ('baseline', 'init_1.0')),
    published={'deviation, 0.1': 0.01, 'deviation, 1.0': 0.68},
  ),
  _claim(
    *(SWITCH, 'table 2', _HELD_OUT, 'selective_precision'),
    'bf16 with a float32 router is as good as float32.',
    *('equal', 0.01, ('bf16_selective', 'baseline')),
    published={'float32': 1.718, 'selective': 1.716},
  ),
  _claim(
    *(SWITCH, 'table 2', _HELD_OUT, 'bf16_router_hurts'),
    'With the router in bf16, too, the model is worse (it diverged).',
    *('higher', 0.01, ('bf16_router', 'bf16_selective')),
    published={'bf16': 3.78, 'selective': 1.716},
  ),
  _claim(
    *(ST_MOE, 'table 4', _HELD_OUT, 'z_loss_costs_nothing'),
    'The router z-loss costs no quality.',
    *('equal', 0.01, ('baseline', 'no_z_loss')),
    published={'with': 1.741, 'without': 1.755},
  ),
  _claim(
    *(ST_MOE, 'appendix B', _Z, 'z_loss_bounds_logits'),
    'The z-loss keeps the squared logsumexp of the router smaller.',
    *('lower', 0.1, ('baseline', 'no_z_loss')),
    **_FIXED,
  ),
  _claim(
    *(ST_MOE, 'appendix B', _Z, 'z_loss_to_zero'),
    'At weight 0.01 the squared logsumexp falls further.',
    *('lower', 0.05, ('z_loss_0.01', 'baseline')),
    **_FIXED,
  ),
  _claim(
    *(SWITCH, 'table 11', _HELD_OUT, 'sampling_hurts'),
    'Drawing the expert from the softmax is worse than the argmax.',
    *('higher', 0.01, ('sampled', 'baseline')),
    published={'sampled': 1.57, 'argmax': 1.471},
  ),
  _claim(
    *(ST_MOE, 'table 3', _HELD_OUT, 'jitter_hurts'),
    'Input jitter costs quality.',
    *('higher', 0.003, ('jitter', 'baseline')),
    published={'jitter': 1.777, 'baseline': 1.755},
  ),
  _claim(
    *(ST_MOE, 'table 2', _HELD_OUT, 'norm_scale_helps'),
    'Removing the gains of the RMS norms costs much quality.',
    *('higher', 0.02, ('no_norm_scale', 'baseline')),
    published={'without': 2.02, 'baseline': 1.755},
  ),
  _claim(
    *(ST_MOE, 'table 2', _HELD_OUT, 'geglu_helps'),
    'ReLU FFNs of equal size are worse than GEGLU.',
    *('higher', 0.01, ('relu', 'baseline')),
    published={'ReLU': 1.849, 'baseline': 1.755},
  ),
  _claim(
    *(ST_MOE, 'table 3', _HELD_OUT, 'dropout_hurts'),
    'Dropout of 0.1 in pre-training costs quality.',
    *('higher', 0.02, ('dropout', 'baseline')),
    published={'dropout': 1.822, 'baseline': 1.755},
  ),
  _claim(
    *(SWITCH, 'section 2.2', _DROPPED, 'collapse_without_balance'),
    'Without the balance loss more tokens are dropped.',
    *('higher', 0.02, ('no_balance', 'baseline')),
    **_FIXED,
  ),
  _claim(
    *(SWITCH, 'section 2.2', _LOAD, 'more_balance_more_even'),
    'A balance loss of weight 0.1 evens the load more than 0.01.',
    *('lower', 0.05, ('balance_0.1', 'baseline')),
    **_FIXED,
  ),
  _claim(
    *(SWITCH, 'section 2.2', _HELD_OUT, '0.01_over_0.1'),
    'Weight 0.01 balances without costing quality, unlike 0.1.',
    *('lower', 0.003, ('baseline', 'balance_0.1')),
  ),
  # At a rate that is too high, which is what the pieces are to protect from.
  _claim(
    *(SWITCH, 'table 3', _HELD_OUT, 'init_mean_fast'),
    'At eight times the rate 0.1 of the variance is better than 1.0.',
    *('lower', 0.02, ('fast', 'fast_init_1.0')),
    added='2026-11-29',
  ),
  _claim(
    *(SWITCH, 'table 3', "deviation(metric='eval/loss')", 'init_variance_fast'),
    'At eight times the rate 0.1 varies less from seed to seed.',
    *('lower', 0.002, ('fast', 'fast_init_1.0')),
    added='2026-11-29',
  ),
  _claim(
    *(SWITCH, 'table 2', _HELD_OUT, 'bf16_router_hurts_fast'),
    'At eight times the rate the router in bf16 is worse.',
    *('higher', 0.01, ('fast_bf16_router', 'fast_bf16_selective')),
    added='2026-11-29',
  ),
  # At the initialisation that varied less over three seeds; over five it does
  # not.
  _claim(
    *(ST_MOE, 'table 2', _HELD_OUT, 'norm_scale_helps_init_1.0'),
    'Where the initialisation is 1.0, too, removing the gains costs much.',
    *('higher', 0.02, ('init_1.0_no_norm_scale', 'init_1.0')),
    added='2026-11-30',
  ),
  _claim(
    *(ST_MOE, 'table 2', _HELD_OUT, 'geglu_helps_init_1.0'),
    'Where it is 1.0, too, ReLU FFNs are worse than GEGLU.',
    *('higher', 0.01, ('init_1.0_relu', 'init_1.0')),
    added='2026-11-30',
  ),
)

COLUMNS = (
  (_LOSS, 'train loss', '.4f'),
  (_HELD_OUT, 'held-out loss', '.4f'),
  (_DROPPED, 'dropped', '.1%'),
  (_LOAD, 'load, max / mean', '.2f'),
  (_Z, 'z-loss, unweighted', '.3f'),
  (_LOGSUMEXP, 'logsumexp', '.3f'),
  ('train/entropy', 'entropy', '.3f'),
)


def _by_weight(file, title, y, metric, arms, **fields):
  series = {'end of training': tuple(arms.items())}
  at = dict(file=file, kind='points', title=title, y=y, metric=metric)
  return at | {'series': series} | fields


FIGURES = (
  dict(
    file='pieces.png',
    kind='points',
    title='One piece at a time (Switch, tables 3, 11; ST-MoE, tables 2 to 4)',
    y='held-out loss, nats',
    metric=_HELD_OUT,
    series={
      'ST-MoE': (
        ('baseline', 'baseline'),
        ('no z-loss', 'no_z_loss'),
        ('ReLU', 'relu'),
        ('no norm gain', 'no_norm_scale'),
        ('jitter', 'jitter'),
        ('dropout', 'dropout'),
      ),
      'Switch': (
        ('init 1.0', 'init_1.0'),
        ('sampled', 'sampled'),
        ('bf16, f32 router', 'bf16_selective'),
        ('bf16', 'bf16_router'),
      ),
      'Switch, eight times the rate': (
        ('all pieces', 'fast'),
        ('init 1.0', 'fast_init_1.0'),
        ('bf16, f32 router', 'fast_bf16_selective'),
        ('bf16', 'fast_bf16_router'),
      ),
    },
    # Baselines differ: ST-MoE's has a z-loss here, as ours has.
    published={
      'ST-MoE': (
        ('baseline', 1.741),
        ('no z-loss', 1.755),
        ('ReLU', 1.849),
        ('no norm gain', 2.020),
        ('jitter', 1.777),
        ('dropout', 1.822),
      ),
      'Switch': (
        ('init 1.0', 3.60),
        ('sampled', 1.570),
        ('bf16, f32 router', 1.716),
        ('bf16', 3.780),
      ),
    },
  ),
  _by_weight(
    'z_loss.png',
    'Squared logsumexp of the router by weight of the z-loss',
    'mean squared logsumexp',
    _Z,
    {'0': 'no_z_loss', '0.001': 'baseline', '0.01': 'z_loss_0.01'},
    log_y=True,
  ),
  _by_weight(
    'balance.png',
    'Busiest expert by weight of the balance loss',
    'load, maximum / mean',
    _LOAD,
    {'0': 'no_balance', '0.01': 'baseline', '0.1': 'balance_0.1'},
  ),
)

_CALM = (
  'Nothing diverges in two blocks and 260 steps: what a smaller initialisation '
  'or a float32 router protects from does not come up, and a tenth of the '
  'variance only starts more slowly. The paper shows a large model early on.'
)
_CALMED = ('init_mean', 'init_variance', 'bf16_router_hurts')
_NOISE = (
  'These models vary by 0.02 to 0.04 nats from seed to seed, and their paired '
  'differences by 0.02 to 0.05: five seeds do not see 0.01, which would take '
  'more than twenty.'
)
_NOISY = (
  *('selective_precision', 'bf16_router_hurts', 'z_loss_costs_nothing'),
  *('jitter_hurts', '0.01_over_0.1', 'geglu_helps_init_1.0'),
)
_CLOSE = (
  'The interval is above 0 and begins below the 0.01 that counts: by the '
  'spread of these five seeds, eleven would decide it.'
)
_EARLY = (
  'At the usual rate nothing diverges in two blocks, and what a smaller '
  'initialisation protects from does not come up: both vary alike from seed to '
  'seed, and 1.0 is ahead by 0.043 on average, little more than that.'
)
_NOTHING_BREAKS = (
  'Two blocks do not diverge: at eight times the rate all are 0.25 to 0.32 '
  'nats worse, with or without the piece, and differ by less than from seed to '
  'seed.'
)
_BROKEN = ('init_mean_fast', 'init_variance_fast', 'bf16_router_hurts_fast')
NOTES = {
  'quick': dict.fromkeys(_CALMED, _CALM),
  'reference': dict.fromkeys(_NOISY, _NOISE)
  | dict.fromkeys(_BROKEN, _NOTHING_BREAKS)
  | dict.fromkeys(('init_mean', 'init_variance'), _EARLY)
  | {'geglu_helps': _CLOSE},
}
