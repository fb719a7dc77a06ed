"""The studies of fine-tuning and distillation: what their arms share."""

import collections

import numpy as np
import pytest

from moe_jax import registry
from moe_jax.studies import results, study as study_lib

DIR = 'configs/ablations'
STUDIES = ('dropout', 'batch_size', 'what_to_update')


@pytest.mark.parametrize('size', study_lib.SIZES)
def test_fine_tuning_studies_share_their_pretraining(size):
  """By digest, whatever the command line says of the tasks."""
  found = collections.defaultdict(set)
  for name in STUDIES:
    path = f'{DIR}/{name}.py'
    for files in ((), ('large',), ('small', 'large')):
      config = study_lib._module(path).get_config(size)
      with config.unlocked():
        for task in files:
          config.tasks[task] = f'/data/{task}_train.jsonl'
      study = study_lib.load(f'{path}:{size}', config=config)
      for arm in study.arms:
        fields = study.config_of(arm, 0)
        if arm.stage == 'pretrain':
          assert (fields.data.task, fields.data.task_file) == ('', '')
          assert fields.model.dropout == 0.0
          found[arm.name].add(results.digest(fields))
        else:
          task = 'small' if arm.name.startswith('small') else 'large'
          given = task in files
          assert bool(fields.data.task_file) == given, arm.name
          assert bool(fields.data.task) != given, arm.name
          assert not given or f'/{task}_' in fields.data.task_file
  assert set(found) == {'dense_pretrained', 'sparse_pretrained'}
  assert {len(v) for v in found.values()} == {1}, found
  assert not set.intersection(*found.values())


def test_dropout_has_at_most_20_arms():
  study = study_lib.load(f'{DIR}/dropout.py:quick')
  assert len(study.arms) <= 20


@pytest.mark.parametrize('size', study_lib.SIZES)
def test_batches_see_as_many_examples(size):
  """Batches in the paper's ratios, 1 : 4 : 16; rates in its, 1 : 5 : 10.

  Of the follow-up, four times as many, or a quarter in the middle's steps.
  """
  study = study_lib.load(f'{DIR}/batch_size.py:{size}')
  seen, rates, batches = {}, set(), set()
  steps = study.config_of(study.arm('dense_low_medium'), 0).train.steps
  for arm in study.arms:
    if arm.stage == 'arm':
      train = study.config_of(arm, 0).train
      _, _, which = arm.name.split('_')
      which = which if which in ('long', 'short') else 'grid'
      seen.setdefault(which, set()).add(train.batch_size * train.steps)
      assert which != 'short' or train.steps == steps
      batches.add(train.batch_size)
      rates.add(registry.parse(train.schedule)[1]['value'])
  (grid,), (long,), (short,) = (seen[k] for k in ('grid', 'long', 'short'))
  assert (long / grid, short / grid) == (4, 0.25)
  low, *more = sorted(batches)
  assert [b / low for b in more] == [4, 16]
  low, *more = sorted(rates)
  assert [r / low for r in more] == pytest.approx([5, 10])
  if size == 'paper':
    assert max(rates) == 1e-3 and 512 * min(batches) == 2**16


def test_table_20_has_its_means():
  """Figure 6's bars from the table's rows: fresh, and not, in this order."""
  module = study_lib._module(f'{DIR}/batch_size.py')
  kept = {  # by rate: batches of 65 k, 262 k, 1 M tokens
    'dense, low': (84.9, 85.1, 84.0),
    'dense, middle': (84.4, 84.9, 84.8),
    'dense, high': (83.7, 84.9, 84.8),
    'sparse, low': (85.6, 85.1, 84.3),
    'sparse, middle': (86.5, 85.5, 86.1),
    'sparse, high': (85.8, 86.2, 86.9),
  }
  for kind in module.KINDS:
    both = {
      r: np.array([kept[f'{kind}, {r}'], module.FRESH[f'{kind}, {r}']])
      * [[0.01], [1.0]]
      for r in module.RATES
    }
    for rate, cells in both.items():
      assert module.BY_RATE[kind][rate] == pytest.approx(cells.mean(), abs=6e-5)
    by_batch = np.mean(list(both.values()), (0, 1))
    assert list(module.BY_BATCH[kind].values()) == pytest.approx(
      list(by_batch), abs=6e-5
    )


def test_shares_kept_are_of_the_losses():
  """Table 6's 3, 20 and 29 %, by hand from its losses."""
  module = study_lib._module(f'{DIR}/distillation.py')
  t = module.TABLE_6
  share = lambda arm: (
    (t['student'] - t[arm]) / (t['student'] - t['teacher_middle'])
  )
  arms = 'distilled', 'weights_distilled', 'mixed_middle'
  assert [round(100 * share(a)) for a in arms] == [3, 20, 29]
  assert share('weights') < 0
