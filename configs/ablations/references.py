"""Reference models: a set of them, in a folder that others take by path.

  python -m experiments.sweep --workdir=SET --jobs=2 \\
      --config=configs/ablations/references.py:reference
  python -m experiments.sweep --workdir=SET --only=deep_aux,deep_loss_free \\
      --config=configs/ablations/references.py:reference
  python -m experiments.verdict --workdir=SET

SET/runs/MODEL/SEED is then the workdir of a run, with its checkpoints: whatever
reads a run takes it, as `train.init_from`, `train.teacher`, `evaluate` and
`generate` do. What has been trained is not trained again. The models are those
of configs/reference.py, and as `deep_*` those of configs/deep.py, whose
checkpoints stay at eight points of the run.

No claims: that mixtures are better than dense models (Fedus et al. 2021,
arXiv:2101.03961) is a claim of `sparse_dense.py`. Here is what to expect.

`reference`: 7 models, 3 seeds each, and 3 deep ones, 75 minutes on one of 2 CPU
cores.
"""

from configs import deep, reference
from configs.ablations import base

STEPS = {'reference': reference.STEPS}
SEEDS = {'reference': 3}
SECONDS = {'reference': 185}  # 100 for the small models, 800 for the deep ones


def get_config(arg='reference'):
  """The config that the arms start from: 16 experts."""
  size = arg or 'reference'
  if size not in SEEDS:
    raise ValueError(f'no size {size!r}; valid: {", ".join(SEEDS)}')
  return base.small(size, STEPS).lock()


def sweep(add, size, config):
  """Every model; of the deep ones a single seed."""
  del size
  for name in reference.VARIANTS:
    add(name, reference.fields(name))
  here = _flat(config)
  for name in deep.VARIANTS:
    own = _flat(deep.get_config(name))
    differs = {k: v for k, v in own.items() if here[k] != v}
    # The text is the command line's.
    text = ('data.name', 'data.dir', 'data.cache')
    add(
      f'deep_{name}',
      {k: v for k, v in differs.items() if k not in text},
      seeds=1,
    )


def _flat(config):
  """{'train.steps': 1024}, of the groups of a config."""
  groups = {k: v for k, v in config.items() if hasattr(v, 'items')}
  return {f'{g}.{k}': v for g, own in groups.items() for k, v in own.items()}


CLAIMS = ()

_BITS = 'eval/bits_per_byte'
COLUMNS = (
  ('eval/loss', 'held-out loss', '.4f'),
  (_BITS, 'bits a byte', '.4f'),
  ('train/loss', 'train loss', '.4f'),
  ('parameters', 'parameters', ',.0f'),
  ('active_parameters', 'active', ',.0f'),
  ('flops_per_token', 'FLOPs a token', ',.0f'),
)

FIGURES = (
  dict(
    file='bits_by_model.png',
    kind='points',
    title='Held-out bits a byte of the reference models',
    y='bits a byte',
    metric=_BITS,
    series={'small': tuple((name, name) for name in reference.VARIANTS)},
  ),
)
