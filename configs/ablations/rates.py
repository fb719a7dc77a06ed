"""Learning rates: the best peak of each kind of reference model.

  python -m experiments.sweep --workdir=/tmp/moe_jax/rates \\
      --config=configs/ablations/rates.py:reference
  python -m experiments.verdict --workdir=/tmp/moe_jax/rates

What a comparison of models says can turn when each gets its own rate (Melis et
al. 2017, arXiv:1707.05589). So here is each kind of configs/reference.py at
four peaks, each run with its own schedule, on the half of the validation
documents that no claim is judged on, and with a seed that no study uses. The
claims are no paper's: they say that the grid holds the best rate inside, for
each kind. Where one does not hold, the grid is too narrow.

`reference`: 5 kinds x 4 peaks, one seed, 45 minutes on one of 2 CPU cores. What
came out stands in configs/reference.py.
"""

from configs import reference
from configs.ablations import base

STEPS = {'reference': reference.STEPS}
SEEDS = {'reference': 1}
SECONDS = {'reference': 134}

SEED = 7  # studies begin at 0, and have fewer
KINDS = ('dense', 'moe_16', 'fine', 'hash', 'finer')
LATER = ('finer',)  # whose claim is younger
PEAKS = (16e-3, 32e-3, 64e-3, 128e-3)


def get_config(arg='reference'):
  """The config that the arms start from: 16 experts."""
  size = arg or 'reference'
  if size not in SEEDS:
    raise ValueError(f'no size {size!r}; valid: {", ".join(SEEDS)}')
  config = base.small(size, STEPS)
  config.seed = SEED
  config.eval.documents = reference.TUNING
  return config.lock()


def _arm(kind, peak):
  return f'{kind}_{peak}'


def sweep(add, size, config):
  """Each kind at each peak."""
  del size
  for kind in KINDS:
    for peak in PEAKS:
      schedule = reference.schedule(config.train.steps, peak)
      own = {'train.schedule': schedule}
      add(_arm(kind, peak), reference.fields(kind) | own)


_HELD_OUT = 'eval/loss'


def _least(kind, peaks):
  """The least loss of a kind at some of the peaks."""
  arms = tuple(_arm(kind, p) for p in peaks)
  return f'least(metric={_HELD_OUT!r}, arms={arms!r})'


CLAIMS = tuple(
  dict(
    name=f'{kind}_inside',
    paper='none',
    table='the grid of rates',
    sentence=f'The best peak of `{kind}` is no edge of the grid.',
    metric=(_least(kind, PEAKS[1:-1]), _least(kind, (PEAKS[0], PEAKS[-1]))),
    direction='lower',
    smallest_effect=0.0,
    arms=(_arm(kind, PEAKS[1]), _arm(kind, PEAKS[0])),
    kind='deterministic',
    seeds_needed=1,
    added='2026-11-30' if kind in LATER else '',
  )
  for kind in KINDS
)

COLUMNS = (
  (_HELD_OUT, 'held-out loss', '.4f'),
  ('eval/bits_per_byte', 'bits a byte', '.4f'),
  ('train/loss', 'train loss', '.4f'),
  ('parameters', 'parameters', ',.0f'),
)

FIGURES = (
  dict(
    file='loss_by_rate.png',
    kind='lines',
    title='Held-out loss by peak learning rate',
    x='peak learning rate',
    y='held-out loss, nats',
    log_x=True,
    metric=_HELD_OUT,
    series={
      kind: tuple((peak, _arm(kind, peak)) for peak in PEAKS) for kind in KINDS
    },
  ),
)
