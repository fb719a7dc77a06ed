"""What to update in fine-tuning: all of a sparse model, or a part.

  python -m experiments.sweep --workdir=/tmp/moe_jax/what_to_update \\
      --config=configs/ablations/what_to_update.py:reference \\
      --config.data.name=python_packages
  python -m experiments.verdict --workdir=/tmp/moe_jax/what_to_update

ST-MoE (Zoph et al. 2022, arXiv:2202.08906) figure 5: all parameters, all but
those of MoE layers, these alone, attention alone, dense FFNs alone. The bars of
the figure could not be read, so no number stands beside ours; the text says
that MoE layers alone are much worse, with four fifths of the parameters, and
that dense FFNs alone are slightly best.

`reference`: the sparse decoder of `dropout.py` on both its tasks; 10 arms, 5
seeds where a claim is theirs, else 3, 55 minutes on 2 CPU cores without
pre-training. Two arms more, of parts alone at four times the rate, were added
when attention and FFNs alone were seen to be worse than all, before their runs.

`quick`: the encoder-decoder of `dropout.py`, pre-trained once (--pretrained=
WORKDIR takes that study's), on its small and its large task; 12 arms, 3 seeds
each, 15 minutes on 2 CPU cores. `gpu`: 4 + 4 blocks, 32 experts, d = 512; not
yet run. `paper`: ST-MoE-L on CB and SST-2; described, not run.

What a step costs stands in the table of arms and is no claim: it says something
only where nothing else ran beside, as with

  python -m experiments.sweep --workdir=/tmp/moe_jax/update_time --seeds=3 \\
      --config=configs/ablations/what_to_update.py:quick --jobs=1
"""

from configs.ablations import base

SEEDS = {'reference': 5, 'quick': 3, 'gpu': 5, 'paper': 5}
# Compiling and evaluating included; pre-training is apart.
SECONDS = {'reference': 118, 'quick': 26, 'gpu': 180}

PARTS = {
  'all': 'all',
  'non_moe': 'not MoE',
  'moe': 'MoE',
  'attention': 'attention',
  'ffn': 'FFN',
}
SIZES = ('small', 'large')
# Parts that fit less than all at the usual rate, and that rate times this.
ALONE, FAST = ('attention', 'ffn'), 4.0


def get_config(arg='reference'):
  """The config that the arms start from: the large task, all parameters."""
  return base.fine_tuning(arg or 'reference').lock()


def sweep(add, size, config):
  """Pre-training and 12 arms: five for each task, and two of a follow-up."""
  base.pretrained(add, size, kinds=('sparse',))
  claimed = {arm for claim in CLAIMS for arm in claim['arms']}
  for task in SIZES:
    fields = base.on_task(task, size, config)
    for part in PARTS:
      own = fields | {'train.trainable': part}
      name = f'{task}_{part}'
      few = size == 'reference' and name not in claimed
      base.tune(add, name, 'sparse', own, seeds=3 if few else 0)
  for part in ALONE:
    own = base.on_task('large', size, config) | {
      'train.trainable': part,
      'train.schedule': base.schedule(size, config.train.steps, FAST),
    }
    base.tune(add, f'large_{part}_fast', 'sparse', own)


_BEST, _LOSS = 'best/accuracy', 'train/loss'
_TRAINED = 'trained_parameters'


def _claim(name, sentence, metric, arms, **fields):
  return dict(
    name=name,
    paper='ST-MoE',
    table='figure 5',
    sentence=sentence,
    metric=metric,
    arms=arms,
    **({'seeds_needed': 3} | fields),
  )


CLAIMS = (
  _claim(
    'moe_alone_is_worse',
    'On the large task updating MoE layers alone is much worse than all.',
    _BEST,
    ('large_moe', 'large_all'),
    direction='lower',
    smallest_effect=0.02,
  ),
  _claim(
    'moe_alone_is_worse_small',
    'On the small task, too, MoE layers alone are much worse.',
    _BEST,
    ('small_moe', 'small_all'),
    direction='lower',
    smallest_effect=0.02,
  ),
  _claim(
    'moe_alone_fits_less',
    'MoE layers alone have a much larger training loss than all the rest.',
    _LOSS,
    ('large_moe', 'large_non_moe'),
    direction='higher',
    smallest_effect=0.02,
  ),
  _claim(
    'moe_alone_fits_less_small',
    'On the small task, too, their training loss is much larger.',
    _LOSS,
    ('small_moe', 'small_non_moe'),
    direction='higher',
    smallest_effect=0.02,
  ),
  _claim(
    'all_but_moe_is_as_good',
    'On the large task freezing MoE layers costs nothing.',
    _BEST,
    ('large_non_moe', 'large_all'),
    direction='equal',
    smallest_effect=0.02,
  ),
  _claim(
    'attention_is_as_good',
    'On the large task attention alone is as good as all.',
    _BEST,
    ('large_attention', 'large_all'),
    direction='equal',
    smallest_effect=0.02,
  ),
  _claim(
    'ffn_is_as_good',
    'On the large task dense FFNs alone are slightly better than all.',
    _BEST,
    ('large_ffn', 'large_all'),
    direction='higher',
    smallest_effect=0.002,
  ),
  *(
    _claim(
      f'{part}_wants_a_larger_rate',
      f'At four times the rate {PARTS[part]} alone is better.',
      _BEST,
      (f'large_{part}_fast', f'large_{part}'),
      direction='higher',
      smallest_effect=0.01,
      added='2026-11-30',
    )
    for part in ALONE
  ),
  *(
    _claim(
      f'{part}_fast_is_as_good',
      f'At four times the rate {PARTS[part]} alone is as good as all.',
      _BEST,
      (f'large_{part}_fast', 'large_all'),
      direction='equal',
      smallest_effect=0.02,
      added='2026-11-30',
    )
    for part in ALONE
  ),
  _claim(
    'moe_is_most_parameters',
    'MoE layers have most of the parameters.',
    _TRAINED,
    ('large_moe', 'large_non_moe'),
    direction='higher',
    smallest_effect=1,
    published={'share of all, about': 0.8},
    kind='deterministic',
    seeds_needed=1,
  ),
  _claim(
    'attention_is_few_parameters',
    'Attention alone trains fewer parameters than all but MoE layers.',
    _TRAINED,
    ('large_attention', 'large_non_moe'),
    direction='lower',
    smallest_effect=1,
    kind='deterministic',
    seeds_needed=1,
  ),
)

COLUMNS = (
  (_BEST, 'best accuracy', '.3f'),
  ('eval/accuracy', 'last accuracy', '.3f'),
  ('eval/majority', 'always the most frequent', '.3f'),
  ('eval/naive_bayes', 'naive Bayes', '.3f'),
  ('eval/loss', 'held-out loss', '.4f'),
  (_LOSS, 'train loss', '.4f'),
  (_TRAINED, 'trained parameters', ',.0f'),
  ('step_seconds', 'seconds a step', '.4f'),
)


def _points(metric, tasks=SIZES, **fields):
  return dict(
    kind='points',
    metric=metric,
    series={
      f'{task} task': tuple((x, f'{task}_{p}') for p, x in PARTS.items())
      for task in tasks
    },
    **fields,
  )


FIGURES = (
  _points(
    _BEST,
    file='accuracy.png',
    title='What is updated in fine-tuning (ST-MoE, figure 5)',
    y='best accuracy',
  ),
  _points(
    _LOSS,
    file='train_loss.png',
    title='How well a part fits the training set (ST-MoE, section 4.3)',
    y='training loss, nats a token of the label',
    log_y=True,
  ),
  _points(
    _TRAINED,
    tasks=('large',),
    file='trained.png',
    title='Parameters that are updated',
    y='parameters',
  ),
  _points(
    'step_seconds',
    tasks=('large',),
    file='step_time.png',
    title='Seconds a step; of use where nothing else ran beside',
    y='seconds',
  ),
)

_ONE_LABEL = (
  'No arm learned either task: nearly all say one label whatever is asked (on '
  'the large task 0.56 of the examples have one and 0.44 the other, on the '
  'small 0.48 and 0.44), and the difference is which. The verdict is of the '
  'claim as it was declared and says nothing of what was updated; losses do.'
)
_FITS_LESS = (
  'Each of both is a tenth of the parameters, FFNs those of one block out of '
  'two, and fits the training set less: its loss there is 0.93 with attention '
  'alone and 1.07 with FFNs alone, 0.79 with all. At four times the rate it is '
  'the same (0.91 and 1.08): the rate is not why. With models of billions the '
  'paper has parameters enough in either.'
)
_OF_MODELS = (
  'Its five runs are of three pre-trained models; taken for five the interval '
  'would be '
)
NOTES = {
  'quick': {
    'moe_alone_is_worse': _ONE_LABEL,
    'moe_alone_is_worse_small': _ONE_LABEL,
    'all_but_moe_is_as_good': _ONE_LABEL,
    'attention_is_as_good': _ONE_LABEL,
    'ffn_is_as_good': _ONE_LABEL,
  },
  'reference': {
    'moe_alone_is_worse_small': _OF_MODELS + '-0.123 to -0.030.',
    'attention_is_as_good': _FITS_LESS + ' ' + _OF_MODELS + '-0.065 to -0.023.',
    'ffn_is_as_good': _FITS_LESS,
    'attention_fast_is_as_good': _FITS_LESS,
    'ffn_fast_is_as_good': _FITS_LESS,
  },
}
