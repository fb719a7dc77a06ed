"""The best checkpoint by a score: kept while it is that, found, survives."""

import numpy as np
import pytest

from moe_jax.problems import base as problems
from moe_jax.runs import checkpoint, pruning
from moe_jax.training import bests
from tests import mains, test_resume, tiny

made, runs = test_resume.made, test_resume.runs  # the fixtures
BEST = {
  'train__keep_best': 'eval/loss',
  'train__keep': 1,
  'train__steps': 9,
  'train__eval_every': 1,
  'train__checkpoint_every': 4,
}


def scored(runs, losses, die=None):
  """Evaluations give these, by step; the run dies at one."""
  at = []

  def hurt(state, step):
    if step == die:
      raise ZeroDivisionError
    at.append(step)
    return state

  runs.hurt = hurt
  runs.scores = lambda *state: {'eval/loss': losses[at[-1] - 1]}


def on_disk(runs):
  return checkpoint.steps(runs.workdir / 'checkpoints')


def best(runs):
  return pruning.best(runs.workdir / 'checkpoints', on_disk(runs))


LOSSES = [5, 4, 2, 3, 3, 2, 2.5, 2.5, 2.2]


def test_it_stays_while_it_is_the_best(runs):
  scored(runs, LOSSES, die=8)
  with pytest.raises(ZeroDivisionError):
    runs(**BEST)
  assert on_disk(runs) == [3, 4] and best(runs) == 3  # step 6 was no better
  with mains.loaded('steps') as steps:
    for given, step in (('best', 3), ('4', 4), (None, None)):
      mains.FLAGS(['evaluate', *([f'--step={given}'] if given else [])])
      assert steps.chosen(str(runs.workdir)) == step
      mains.FLAGS['step'].value = None
    mains.FLAGS(['evaluate', '--step=-1'])
    with pytest.raises(ValueError, match="=-1; a number or 'best' is wanted"):
      steps.chosen(str(runs.workdir))
  scored(runs, LOSSES)
  assert runs(**BEST)['best_step'] == 3  # known to who goes on at step 4
  assert on_disk(runs) == [3, 9] and best(runs) == 3
  scored(runs, [*LOSSES, 1, 4])
  summary = runs(('train.steps',), **BEST | {'train__steps': 11})
  assert summary['best_step'] == 10 and on_disk(runs) == [10, 11]


def test_what_a_step_to_go_back_to_calls_the_best_stays(runs):
  """Where the newest is damaged, the one before has its best still."""
  scored(runs, [5, 2, 3, 3, 1, 3], die=7)
  with pytest.raises(ZeroDivisionError):
    runs(**BEST | {'train__keep': 2, 'train__checkpoint_every': 3})
  assert on_disk(runs) == [2, 3, 5, 6] and best(runs) == 5
  for newest in (5, 6):
    step = runs.workdir / 'checkpoints' / str(newest)
    step.rename(step.with_name(f'_{newest}'))
  assert best(runs) == 2


def test_of_scores_the_higher_may_be_better():
  config = tiny.config(**{'data.task': 'kinds'})
  problem = problems.of(config)
  found = bests.Best('eval/accuracy', problem)
  given = [0.1, 0.3, 0.3, 0.2, 0.4]
  better = [found.add(i, {'eval/accuracy': v}) for i, v in enumerate(given)]
  assert better == [True, True, False, False, True]
  other = bests.Best('eval/loss', problem, found.state())  # another score's
  assert other.state() is None
  again = bests.Best('eval/accuracy', problem, found.state())
  assert not again.add(9, {'eval/accuracy': np.float32(0.35)})
  assert bests.Best('', problem).add(1, {}) is False


def test_a_wrong_score_costs_a_line(runs):
  with pytest.raises(ValueError, match=r"unknown train\.keep_best 'loss'"):
    tiny_check('loss', 1)
  with pytest.raises(ValueError, match=r'train\.eval_every=0 makes one'):
    tiny_check('eval/loss', 0)
  runs(train__steps=2)
  with pytest.raises(ValueError, match=r'no best checkpoint; train\.keep_best'):
    best(runs)


def tiny_check(name, every):
  config = tiny.config(**{'train.keep_best': name, 'train.eval_every': every})
  bests.check(config, problems.of(config))
