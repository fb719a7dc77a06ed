"""Step time: what capacity, a second choice and more experts cost.

  python -m experiments.sweep --workdir=/tmp/moe_jax/step_time \\
      --config=configs/ablations/step_time.py:quick
  python -m experiments.verdict --workdir=/tmp/moe_jax/step_time

Switch Transformer (Fedus et al. 2021, arXiv:2101.03961) table 1 and figure 6;
ST-MoE (Zoph et al. 2022, arXiv:2202.08906) table 9. Nothing else may run beside
it: the times are of one machine, and only their ratios are compared with the
papers' examples a second (128 experts, 32 cores of TPU v3).

`quick`: a byte-level decoder of two blocks, d = 128, the second sparse, groups
of 512 tokens, 40 steps; 9 arms, 3 seeds each, 8 minutes on 2 CPU cores. `gpu`:
8 blocks, 32 experts, d = 512; not yet run. `paper`: Switch-Base; described, not
run.
"""

from configs import switch
from configs.ablations import base

STEPS = {'quick': 40, 'gpu': 100}
SEEDS = {'quick': 3, 'gpu': 3, 'paper': 1}
# Compiling and evaluating included.
SECONDS = {'quick': 18, 'gpu': 40}

TOP1, TOP2 = 'switch()', 'top_k(k=2)'


def get_config(arg='quick'):
  """The config that the arms start from: top-1 at capacity factor 1.25."""
  size = arg or 'quick'
  base.check(size)
  if size == 'paper':
    config = switch.get_config('base_128').unlock()
  else:
    config = base.small(size, STEPS)
  # Causal for top-2, too.
  config.moe.seating = 'token_major()'
  if size == 'quick':
    config.model.update(d_model=128, num_heads=4, d_ff=1024)
    config.moe.update(d_ff=1024, group_size=512)
  config.moe.update(
    router=TOP1,
    capacity_rule='paper()',
    capacity_factor=1.25,
    eval_capacity_factor=2.0,
  )
  return config.lock()


def sweep(add, size, config):
  """The dense model, top-1 and top-2 by capacity factor, top-1 by experts."""
  del size, config
  add('dense', {'moe.layers': 'none'})
  for factor in (1.0, 1.25, 2.0):
    add(f'top1_{factor}', {'moe.capacity_factor': factor})
  for factor in (1.0, 1.25, 2.0):
    add(
      f'top2_{factor}',
      {'moe.router': TOP2, 'moe.capacity_factor': factor},
    )
  for count in (2, 64):
    add(f'experts_{count}', {'moe.num_experts': count})


SWITCH, ST_MOE = 'Switch Transformer', 'ST-MoE'
_STEP = 'step_seconds'


def _claim(name, paper, table, sentence, arms, published, **fields):
  fields = dict(direction='higher', smallest_effect=0.0) | fields
  return dict(
    name=name,
    paper=paper,
    table=table,
    sentence=sentence,
    metric=_STEP,
    arms=arms,
    published=published,
    kind='deterministic',
    seeds_needed=3,
    **fields,
  )


CLAIMS = (
  _claim(
    'step_time_grows',
    SWITCH,
    'table 1',
    'A step at capacity factor 2.0 takes longer than at 1.0.',
    ('top1_2.0', 'top1_1.0'),
    {'time, 2.0 / 1.0': 1.163},
  ),
  _claim(
    'train_1.25_to_2',
    ST_MOE,
    'table 9',
    'A step at capacity factor 2.0 takes longer than at 1.25.',
    ('top1_2.0', 'top1_1.25'),
    {'time, 2.0 / 1.25, L': 1.021, 'the same, 32B': 1.135},
  ),
  _claim(
    'top2_is_slower',
    SWITCH,
    'table 1',
    'At capacity factor 1.0 a step of top-2 takes longer than top-1.',
    ('top2_1.0', 'top1_1.0'),
    {'time, top-2 / top-1': 1.163},
  ),
  _claim(
    'sparse_is_slower',
    SWITCH,
    'table 1',
    'At equal FLOPs a sparse step takes longer than a dense one.',
    ('top1_1.25', 'dense'),
    {'time, E = 128 / dense': 1.758},
  ),
)

COLUMNS = (
  (_STEP, 'seconds a step', '.4f'),
  ('tokens_per_second', 'tokens a second', ',.0f'),
  ('train/dropped', 'dropped', '.1%'),
  ('parameters', 'parameters', ',.0f'),
)

FIGURES = (
  dict(
    file='step_time.png',
    kind='points',
    title='Seconds a step (Switch, table 1; published: 1 / examples a second)',
    y='seconds',
    metric=_STEP,
    series={
      'top-1': tuple((str(f), f'top1_{f}') for f in (1.0, 1.25, 2.0)),
      'top-2': tuple((str(f), f'top2_{f}') for f in (1.0, 1.25, 2.0)),
      'dense': (('dense', 'dense'),),
    },
    published={
      'top-1': (('1.0', 1 / 1000), ('1.25', 1 / 910), ('2.0', 1 / 860)),
      'top-2': (('1.0', 1 / 860), ('1.25', 1 / 790), ('2.0', 1 / 840)),
      'dense': (('dense', 1 / 1600),),
    },
  ),
  dict(
    file='by_experts.png',
    kind='lines',
    title='Seconds a step by number of experts, equal FLOPs',
    x='experts (1 is dense)',
    y='seconds',
    log_x=True,
    metric=_STEP,
    series={
      'top-1, factor 1.25': (
        (1, 'dense'),
        (2, 'experts_2'),
        (8, 'top1_1.25'),
        (64, 'experts_64'),
      )
    },
  ),
)

NOTES = {
  'quick': {
    'sparse_is_slower': (
      'At a factor of 1.25 a seventh of the tokens is dropped, which saves '
      'their products; at 2.0, where hardly one is, the sparse step is the '
      'slower one. The paper pays for an exchange between devices, too.'
    ),
    'top2_is_slower': (
      'At a factor of 1.0 top-2 has as many seats as top-1, and 59 % of its '
      'assignments find none.'
    ),
  },
}
