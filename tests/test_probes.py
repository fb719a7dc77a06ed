"""Probes of runs, and measures of their health by hand."""

import re

import numpy as np
import pytest

from moe_jax import types
from moe_jax.training import (
  plans,
  probes,
  trail,
)
from tests import test_study_files, tiny


@pytest.mark.parametrize(
  ('spec', 'message'),
  [
    ('entropy()', "unknown probe 'entropy'; valid: capacity_factors, drop_by"),
    ('logits(k=2)', "unknown argument of probe 'logits' 'k'"),
    ('capacity_factors(values=(-1,))', '-1 is no factor'),
  ],
)
def test_probe_errors(spec, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    probes.build(spec)


def test_probes_of_a_dense_model():
  config = tiny.config(**{'eval.probes': ('logits()',), 'moe.layers': 'none'})
  with pytest.raises(ValueError, match="'logits\\(\\)', which looks at MoE"):
    probes.check(config)


def test_wasted_seats_by_hand():
  cause_QC = np.zeros((2, 6), int)
  cause_QC[:, 0] = 6, 2  # kept
  cause_QC[:, 1] = 1, 1  # no room
  assert trail.wasted(cause_QC, 32) == 0.75
  assert trail.dropped(cause_QC) == 0.2


def test_seats_beside_a_model_axis():
  """Groups of the 32 tokens of each of four pairs of devices; all seated."""
  fields = {'moe.group_size': 32, 'moe.router': 'switch()'}
  session = plans.make(tiny.config(**fields), 'exact(expert=4,model=2)')
  for split in ('train', 'eval'):
    factor = 2 if split == 'eval' else 1
    held = trail.seats(session, split)
    assert held == {'decoder': factor * 8 * 16}


def test_stacks_are_told_apart():
  """The encoder's layers come first; shares are of their own seats."""
  study = test_study_files.load('configs/ablations/capacity_factor.py', 'paper')
  config = study.config_of(study.arm('top1_1.25'), 0)
  with config.unlocked():
    config.train.steps = 1
  session = plans.make(config, 'exact()')
  held = trail.seats(session, 'train')
  # Factor 1.25 of 2^20 encoder tokens and of 2,048 x 114 target tokens; rows
  # are rounded up: 32 experts x ceil(1.25 x 456 / 32) of 456-token groups.
  assert held == {'encoder': 1.25 * 2**20, 'decoder': 512 * 32 * 18}
  follow = trail.Trail(session)
  cause_QC = np.zeros((12, 6), int)
  cause_QC[:6, 0], cause_QC[6:, 0] = held['encoder'] // 2, held['decoder']
  follow.add(
    1,
    {
      'loss': 2.0,
      'cause': cause_QC,
      'load': np.ones((12, 32)),
      'balance': {'switch_loss': np.float32(1)},
      'entropy': np.ones(12),
      'health': {
        'tokens': np.ones(12),
        'used': np.tile([0, 0.5, 0.5], (12, 1)),
        'bias': np.zeros(12),
      },
    },
  )
  found = follow.summary()
  assert found['train/encoder/wasted'] == 0.5
  assert found['train/decoder/wasted'] == 0.0
  assert found['train/load_max'] == 1.0 and found['train/loss'] == 2.0
  assert found['train/experts_used'] == 1.5
  assert found['train/max_violation'] == found['train/dead'] == 0.0


def test_wasted_seats_of_a_run_with_two_batch_sizes():
  """Steps 19 and 20 have 8 and 16 rows of 16 tokens, each with one seat."""
  fields = {'train.steps': 20, 'mesh': 'exact()'}
  make = lambda rows: plans.make(
    tiny.config(**fields, **{'train.batch_size': rows}), 'exact()'
  )
  sessions = [make(rows) for rows in (8, 16)]
  metrics = {
    'loss': 1.0,
    'cause': _causes(KEPT=64),
    'load': np.ones((1, 2)),
    'balance': {},
    'entropy': np.ones(1),
    'health': {
      'tokens': np.ones(1),
      'used': np.array([[0, 1, 0]]),
      'bias': np.zeros(1),
    },
  }
  for knows, want in ((True, 128 + 256), (False, 256 + 256)):
    before, after = map(trail.Trail, sessions)
    before.add(19, metrics)
    kept = before.state()
    if not knows:  # as checkpoints used to
      del kept['tail']['sums']['held']
    after.restore(19, kept)
    after.add(20, metrics)
    found = after.summary()
    assert found['train/wasted'] == pytest.approx(1 - 128 / want)


def test_health_of_the_first_and_the_last_tenth():
  """By hand: one layer of two experts, 20 steps, so that a tenth is two."""
  session = plans.make(tiny.config(**{'train.steps': 20}), 'exact()')
  follow = trail.Trail(session)
  for step in range(1, 21):
    busy = {1: 8, 2: 6, 19: 5}.get(step, 4)
    kept, null = {19: (4, 4), 20: (8, 0)}.get(step, (0, 8))
    follow.add(
      step,
      {
        'loss': 2.0,
        'cause': _causes(KEPT=kept, LOCAL=null),
        'load': np.array([[busy, 8 - busy]]),
        'balance': {},
        'entropy': np.ones(1),
        'health': {
          'tokens': np.full(1, 4.0),
          'used': np.array([[4 - kept // 2, 0, kept // 2]]),
          'bias': np.zeros(1),
        },
      },
    )
  found = follow.summary()
  # Largest over mean, less 1: 8/4 and 6/4; then 5/4 and 4/4.
  assert found['train/early_max_violation'] == (1 + 0.5) / 2
  assert found['train/max_violation'] == 0.25 / 2
  assert found['train/load_cv'] == 0.25 / 2  # 5 and 3 are 1 from the mean
  assert found['train/experts_used'] == (2 * 2 / 4 + 2 * 4 / 4) / 2
  assert found['train/local'] == 0.5 / 2 and found['train/dead'] == 0


def _causes(**counts):
  cause_QC = np.zeros((1, len(types.CAUSES)), int)
  for name, count in counts.items():
    cause_QC[0, getattr(types, name)] = count
  return cause_QC


def test_norms_without_gain():
  """No gain is left anywhere, and the output is that of gains of 1."""
  made = {
    scaled: plans.make(tiny.config(**{'model.norm_scale': scaled}), 'exact()')
    for scaled in (True, False)
  }
  gains = [x.path for x in made[True].leaves() if 'norm' in x.path]
  assert gains and all(p.endswith("['scale']") for p in gains)
  kept = [x.path for x in made[True].leaves() if 'norm' not in x.path]
  assert [x.path for x in made[False].leaves()] == kept
