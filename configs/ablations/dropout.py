"""Dropout in fine-tuning: everywhere or in experts, few examples or many.

  python -m experiments.sweep --workdir=/tmp/moe_jax/dropout \\
      --config=configs/ablations/dropout.py:reference \\
      --config.data.name=python_packages
  python -m experiments.verdict --workdir=/tmp/moe_jax/dropout

Switch Transformer (Fedus et al. 2021, arXiv:2101.03961) table 4; ST-MoE (Zoph
et al. 2022, arXiv:2202.08906) figures 3 and 4. A dense and a sparse model are
pre-trained without dropout; each arm fine-tunes one of them with a rate
everywhere (d), or with 0.1 everywhere and a higher one on the hidden
activations of the experts (ed). At d = 0.1 the experts have 0.1, too: that arm
is ed = 0.1. The papers report the best evaluation, and so is ours.

The small task has 250 examples, as CB has. Files may be given; pre-train on
text that is near to them then:

  --config.tasks.small=TASKS/commitmentbank_train.jsonl \\
  --config.tasks.large=TASKS/sst2_train.jsonl --config.data.dir=TEXT

`reference`: a byte-level decoder of two blocks, the second sparse, 8 experts,
top-1, d = 64, pre-trained on 8.4 million bytes by three seeds of each kind; the
tasks ask which of 8 domains of the text a passage of 96 bytes is from, with a
tenth of the training labels wrong: 250 examples forty times, 20,000 twice. The
standard library has three; kept results are of --config.data.dir=TEXT. 18 arms:
3 seeds, where a claim is theirs 5 on the large task and 10 on the small, whose
runs are short, which count as three, the pre-trained models that they are of;
an hour and a half on 2 CPU cores. The same pre-training serves
`batch_size.py` and `what_to_update.py` (--pretrained=WORKDIR).

`quick`: a byte-level encoder-decoder of 2 + 2 blocks, every second sparse, 8
experts, top-1, d = 64; 18 arms, 5 seeds each, and two pre-training runs, at
most 40 minutes; its tasks are about docstrings, and of what is kept files that
were given. `gpu`: 4 + 4 blocks, 32
experts, d = 512; not yet run. `paper`: ST-MoE-L and its dense twin on CB and
SST-2; described, not run.

The published numbers are of Switch-Base and T5-Base, mean scores of GLUE (for
the large task) and SuperGLUE (for the small), a hundredth of the table's.
"""

from configs.ablations import base

SEEDS = {'reference': 5, 'quick': 5, 'gpu': 5, 'paper': 5}
# Compiling, evaluating and a share of pre-training included.
SECONDS = {'reference': 115, 'quick': 26, 'gpu': 180}

# Seeds at 'reference' of arms that claims are about; of the others 3.
CLAIMED = {'small': 10, 'large': 5}

DROPOUT, EXPERT = (0.1, 0.2, 0.3), (0.2, 0.3, 0.4)
SIZES = ('small', 'large')


def get_config(arg='reference'):
  """The config that the arms start from: the large task, d = 0.1."""
  return base.fine_tuning(arg or 'reference').lock()


def sweep(add, size, config):
  """Pre-training of both kinds and 18 arms: nine for each task."""
  base.pretrained(add, size)
  claimed = {arm for claim in CLAIMS for arm in claim['arms']}
  experts = config.moe.experts.removesuffix(')')
  for task in SIZES:
    fields = base.on_task(task, size, config)

    def tune(name, kind, own, task=task):
      seeds = 0
      if size == 'reference':
        seeds = CLAIMED[task] if name in claimed else 3
      base.tune(add, name, kind, own, seeds=seeds)

    for kind in ('dense', 'sparse'):
      for d in DROPOUT:
        tune(f'{task}_{kind}_d{d}', kind, fields | {'model.dropout': d})
    for ed in EXPERT:
      own = fields | {'moe.experts': f'{experts}, dropout={ed})'}
      tune(f'{task}_sparse_ed{ed}', 'sparse', own)


SWITCH, ST_MOE = 'Switch Transformer', 'ST-MoE'
_BEST, _LOSS, _HELD_OUT = 'best/accuracy', 'train/loss', 'eval/loss'
_GAP = "gap(metric='eval/loss', less='train/loss')"
# Table 4, GLUE and SuperGLUE, by arm.
GLUE = {
  'dense_d0.1': 0.829,
  'sparse_d0.1': 0.847,
  'sparse_d0.2': 0.844,
  'sparse_d0.3': 0.839,
  'sparse_ed0.4': 0.852,
}
SUPERGLUE = {
  'dense_d0.1': 0.724,
  'sparse_d0.1': 0.730,
  'sparse_d0.2': 0.732,
  'sparse_d0.3': 0.707,
  'sparse_ed0.4': 0.730,
}
_TABLE = {'small': SUPERGLUE, 'large': GLUE}


def _claim(name, paper, table, sentence, metric, task, arms, **fields):
  arms = tuple(f'{task}_{a}' for a in arms)
  return dict(
    name=name,
    paper=paper,
    table=table,
    sentence=sentence,
    metric=metric,
    arms=arms,
    seeds_needed=5,
    **fields,
  )


def _table_4(name, sentence, task, arms, direction, smallest_effect):
  """A claim about accuracy with the table's numbers of its two arms."""
  return _claim(
    name,
    SWITCH,
    'table 4',
    sentence,
    _BEST,
    task,
    arms,
    direction=direction,
    smallest_effect=smallest_effect,
    published={a: _TABLE[task][a] for a in arms},
  )


CLAIMS = (
  _claim(
    'sparse_fits_faster',
    ST_MOE,
    'figure 3',
    'On the small task the sparse model fits the training set faster.',
    _LOSS,
    'small',
    ('sparse_d0.1', 'dense_d0.1'),
    direction='lower',
    smallest_effect=0.01,
  ),
  _claim(
    'sparse_overfits',
    ST_MOE,
    'figure 3',
    'On the small task held-out loss exceeds training loss by more where the '
    'model is sparse.',
    _GAP,
    'small',
    ('sparse_d0.1', 'dense_d0.1'),
    direction='higher',
    smallest_effect=0.01,
  ),
  _claim(
    'dense_wins_on_few_examples',
    ST_MOE,
    'figure 3',
    'On the small task the sparse model is worse than the dense one.',
    _BEST,
    'small',
    ('sparse_d0.1', 'dense_d0.1'),
    direction='lower',
    smallest_effect=0.005,
  ),
  _claim(
    'sparse_fits_the_large_task',
    ST_MOE,
    'figure 3',
    'On the large task, too, the sparse model fits the training set faster.',
    _LOSS,
    'large',
    ('sparse_d0.1', 'dense_d0.1'),
    direction='lower',
    smallest_effect=0.005,
  ),
  _table_4(
    'sparse_wins_on_many_examples',
    'On the large task the sparse model is better than the dense one '
    '(ST-MoE, figure 3, too).',
    'large',
    ('sparse_d0.1', 'dense_d0.1'),
    'higher',
    0.005,
  ),
  _table_4(
    'more_dropout_hurts',
    'On the large task dropout of 0.3 everywhere is worse than 0.1.',
    'large',
    ('sparse_d0.3', 'sparse_d0.1'),
    'lower',
    0.004,
  ),
  _table_4(
    'more_dropout_hurts_small',
    'On the small task, too, dropout of 0.3 is worse than 0.1.',
    'small',
    ('sparse_d0.3', 'sparse_d0.1'),
    'lower',
    0.005,
  ),
  _table_4(
    'expert_dropout_helps',
    'On the large task expert dropout of 0.4 is better than 0.1.',
    'large',
    ('sparse_ed0.4', 'sparse_d0.1'),
    'higher',
    0.002,
  ),
  _claim(
    'expert_dropout_helps_small',
    ST_MOE,
    'figure 4',
    'On the small task expert dropout of 0.4 on top of 0.1 gains modestly.',
    _BEST,
    'small',
    ('sparse_ed0.4', 'sparse_d0.1'),
    direction='higher',
    smallest_effect=0.002,
    published={
      'Switch, table 4, ed .4': SUPERGLUE['sparse_ed0.4'],
      'the same, d .1': SUPERGLUE['sparse_d0.1'],
    },
  ),
  _claim(
    'expert_dropout_curbs_overfitting',
    SWITCH,
    'section 2.4',
    'On the small task the last held-out loss is lower with expert dropout.',
    _HELD_OUT,
    'small',
    ('sparse_ed0.4', 'sparse_d0.1'),
    direction='lower',
    smallest_effect=0.005,
  ),
  _table_4(
    'in_experts_rather_than_everywhere',
    'On the small task dropout of 0.4 in the experts is better than 0.3 '
    'everywhere.',
    'small',
    ('sparse_ed0.4', 'sparse_d0.3'),
    'higher',
    0.005,
  ),
)

COLUMNS = (
  (_BEST, 'best accuracy', '.3f'),
  ('eval/accuracy', 'last accuracy', '.3f'),
  ('eval/majority', 'always the most frequent', '.3f'),
  ('eval/naive_bayes', 'naive Bayes', '.3f'),
  (_HELD_OUT, 'held-out loss', '.4f'),
  (_LOSS, 'train loss', '.4f'),
  (_GAP, 'gap', '.4f'),
)


def _points(task, metric, published, **fields):
  arms = {
    'dense': [(f'd {d}', f'dense_d{d}') for d in DROPOUT],
    'sparse': [(f'd {d}', f'sparse_d{d}') for d in DROPOUT]
    + [(f'ed {e}', f'sparse_ed{e}') for e in EXPERT],
  }
  theirs = {
    kind: tuple((x, published[a]) for x, a in points if a in published)
    for kind, points in arms.items()
  }
  return dict(
    kind='points',
    metric=metric,
    series={
      kind: tuple((x, f'{task}_{a}') for x, a in points)
      for kind, points in arms.items()
    },
    published=theirs if published else {},
    **fields,
  )


FIGURES = (
  *(
    _points(
      task,
      _BEST,
      _TABLE[task],
      file=f'accuracy_{task}.png',
      title=f'Dropout d, or 0.1 and ed in experts, {task} task (Switch, table '
      f'4, {score})',
      y='best accuracy',
    )
    for task, score in (('small', 'SuperGLUE'), ('large', 'GLUE'))
  ),
  *(
    dict(
      file=f'fit_{task}.png',
      kind='curves',
      title=f'Training loss on the {task} task (ST-MoE, figure 3)',
      x='step',
      y='training loss, nats a token of the label',
      log_y=True,
      series={
        'dense': f'{task}_dense_d0.1',
        'sparse': f'{task}_sparse_d0.1',
        'sparse, ed 0.4': f'{task}_sparse_ed0.4',
      },
    )
    for task in SIZES
  ),
  dict(
    file='overfitting.png',
    kind='points',
    title='Held-out loss less training loss (ST-MoE, figure 3), d = 0.1',
    y='nats a token of the label',
    metric=_GAP,
    series={
      kind: tuple((f'{t} task', f'{t}_{kind}_d0.1') for t in SIZES)
      for kind in ('dense', 'sparse')
    },
  ),
)

_CHANCE = (
  'No arm learned the large task: mean accuracies are within a point of that '
  'of always saying the most frequent label (0.56), or below. Accuracy says '
  'nothing of dropout here; losses, which include the form of the answer, do '
  'say a little.'
)
_SPARSE_LEARNS_LESS = (
  'The dense model learned something (0.64 where the most frequent label has '
  '0.48), the sparse one did not: pre-training on 3 million bytes leaves it no '
  'better, and an expert sees only its share of few examples.'
)
_IN_EXPERTS = (
  'Early steps lose up to 0.14 by it (seed 0); at the end training loss is '
  'within 0.005 of that without, and accuracy within 0.005: a fresh mask on '
  'the hidden units of one block of two changes little, where dropout '
  'everywhere changes much.'
)
_OF_MODELS = (
  'Its ten runs are of three pre-trained models, and what they say goes with '
  'the model: taken for ten the interval would be '
)
NOTES = {
  'reference': dict.fromkeys(
    (
      'expert_dropout_helps',
      'expert_dropout_helps_small',
      'expert_dropout_curbs_overfitting',
    ),
    _IN_EXPERTS,
  )
  | {
    'sparse_fits_faster': _OF_MODELS + '-0.156 to -0.071.',
    'more_dropout_hurts_small': _OF_MODELS + '-0.042 to -0.020.',
    'in_experts_rather_than_everywhere': _OF_MODELS + '+0.020 to +0.042.',
  },
  'quick': {
    'sparse_fits_faster': _SPARSE_LEARNS_LESS,
    'dense_wins_on_few_examples': _SPARSE_LEARNS_LESS
    + ' The direction is the one of the paper, the reason is not overfitting.',
    'sparse_fits_the_large_task': _CHANCE,
    'sparse_wins_on_many_examples': _CHANCE,
    'more_dropout_hurts': _CHANCE,
    'expert_dropout_helps': _CHANCE,
  },
}
