"""A run that was stopped leaves the records of one that was not.

All that draws is on: dropout after sub-layers, on attention and inside experts,
jitter, a random second choice, random seating, and the rows of the batches.
"""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from moe_jax import manifest
from moe_jax.parallel import mesh as mesh_lib
from moe_jax.runs import checkpoint
from moe_jax.studies import origins, results, runner, study as study_lib
from moe_jax.training import clock, loop, session as session_lib, trail
from tests import test_tuning, tiny

corpus = test_tuning.corpus  # the fixture

# Neither time nor speed is the same twice.
TIMINGS = {
  'seconds',
  'tokens_per_second',
  'eval/seconds',
  'step_seconds',
  'mfu',
  'matmul_flops_per_second',
}
# A tenth are 3 steps, 19 to 21 and 1 to 3; the curve has windows that end at 6,
# 11, 16 and 21. Checkpoints lie inside of all of these.
NOISY = {
  'mesh': 'exact()',
  'train.steps': 21,
  'train.checkpoint_every': 2,
  'train.eval_every': 7,
  'train.log_every': 4,
  'train.optimizer': 'sgd(momentum=0.9)',
  'train.schedule': 'constant(value=0.01)',
  'model.dropout': 0.1,
  'model.d_model': 8,
  'model.num_layers': 1,
  'moe.layers': 'all',
  'moe.experts': "mlp(activation='relu', dropout=0.4)",
  'moe.router': "top_k(k=2, jitter=0.1, second_policy='random')",
  'moe.seating': 'random_tokens()',
  'moe.allow_noncausal': True,
  'moe.balance': ('switch_loss()', 'loss_free_bias(rate=0.01)'),
}


class KilledError(Exception):
  pass


class Evaluate:
  """Scores that are of the parameters; not the model's."""

  def __call__(self, params, balance):
    del balance
    table = np.asarray(params['embedding']['table'], np.float64)
    return {'eval/loss': table.std(), 'eval/accuracy': table.mean()}

  def floor(self):
    return {'eval/floor': 1.0}


@pytest.fixture(scope='module')
def session(corpus, tmp_path_factory):
  """On one of the devices: to compile for all takes twice as long."""
  config = tiny.config(**corpus, **NOISY)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(mesh_lib, 'shape', lambda *args: mesh_lib.exact())
    patch.setattr(trail, 'WINDOWS', 4)
    made = session_lib.make(config, tmp_path_factory.mktemp('session'))
    start = made.abstract_state
    made.programs['init'] = lambda key: test_tuning.noise(start, 5)
    made.programs['evaluate'] = Evaluate()
    made.programs['rate'] = 1.0  # a second of this machine's time
    yield made


@pytest.fixture(scope='module')
def whole(session, tmp_path_factory):
  """The workdir of a run that nothing disturbs."""
  workdir = tmp_path_factory.mktemp('whole')
  loop.train(session.config, str(workdir), session=session)
  return workdir


class Fatal:
  """A program of a run that dies at a moment.

  Attributes:
    own: the program.
    moment: ('step', number), ('evaluation', how many-eth) or ('summary',).
  """

  def __init__(self, own, moment):
    self.own, self.moment, self._calls = own, moment, 0

  def __call__(self, *args):
    self._calls += 1
    number = int(args[0].step) + 1 if self.moment[0] == 'step' else self._calls
    if self.moment[1:] == (number,):
      raise KilledError
    return self.own(*args)

  def floor(self):
    if self.moment == ('summary',):
      raise KilledError
    return self.own.floor()


def die(session, workdir, *moment):
  """Starts or goes on, up to a moment; the newest checkpoint then."""
  name = 'train' if moment[0] == 'step' else 'evaluate'
  fatal = Fatal(session.programs[name], moment)
  own = dataclasses.replace(session, programs=session.programs | {name: fatal})
  with pytest.raises(KilledError):
    loop.train(session.config, str(workdir), session=own)
  assert not (workdir / 'summary.json').exists()
  return checkpoint.steps(workdir / 'checkpoints')[-1]


def untimed(row):
  return {k: v for k, v in row.items() if k not in TIMINGS}


def read(workdir):
  text = (workdir / 'metrics.jsonl').read_text()
  rows = [json.loads(line) for line in text.splitlines()]
  return rows, json.loads((workdir / 'summary.json').read_text())


def state(session, workdir):
  with checkpoint.Checkpointer(workdir / 'checkpoints', 2) as saved:
    return jax.device_get(saved.restore(session.abstract_state)[0])


@pytest.mark.slow
def test_another_seed_draws_otherwise(session, whole):
  """From the same state, on the same batch: noise alone is another."""
  first = state(session, whole)
  batch = session.data.batch(seed=0, batch_size=8, step=0)
  where = jax.tree.map(lambda v: v.sharding, session.abstract_state)

  def outcome(seed):
    fresh = jax.device_put(first, where)  # the step takes its buffers
    key = jax.random.key(seed)
    _, metrics = session.programs['train'](fresh, session.put(batch), key)
    return float(metrics['loss']), metrics['cause'].tolist()

  (loss, cause), other = outcome(0), outcome(1)
  assert outcome(0) == (loss, cause)
  assert other[0] != loss and other[1] != cause


def test_stopped_at_every_moment(session, whole, tmp_path):
  """Field by field, row by row and, noise and all, bit by bit."""
  # In the first tenth; between rows, within a window of the curve.
  assert die(session, tmp_path, 'step', 3) == 2
  # Evaluations are at 7, 14 and 21, before what is saved then.
  assert die(session, tmp_path, 'evaluation', 2) == 12
  assert die(session, tmp_path, 'step', 21) == 20  # in the last tenth
  assert die(session, tmp_path, 'evaluation', 1) == 20
  assert die(session, tmp_path, 'summary') == 21  # all is trained
  loop.train(session.config, str(tmp_path), session=session)
  (rows, summary), (want, twin) = read(tmp_path), read(whole)
  assert [untimed(r) for r in rows] == [untimed(r) for r in want]
  assert [r['step'] for r in rows] == [1, 4, 7, 8, 12, 14, 16, 20, 21]
  assert untimed(summary) == untimed(twin) and summary.keys() == twin.keys()
  assert all(summary[k] > 0 for k in TIMINGS - {'eval/seconds'})
  assert 'not_known' not in summary
  jax.tree.map(
    np.testing.assert_array_equal,
    state(session, tmp_path),
    state(session, whole),
  )
  # Time goes on, too.
  seconds = [r['seconds'] for r in rows if 'seconds' in r]
  assert seconds == sorted(seconds) and summary['seconds'] > seconds[-1]


def step_of(loss):
  """A step's metrics of an MoE model, made by hand; its loss is given."""
  one = np.ones(1)
  health = {'tokens': one * 4, 'used': np.eye(17)[1:2] * 4, 'bias': one}
  return {
    'loss': np.float32(loss),
    'cause': np.array([[4, 0, 0, 0, 0, 0]]),
    'load': np.array([[2, 2, 0, 0]]),
    'balance': {'switch_loss': one * loss, 'loss_free_bias': one},
    'entropy': one,
    'health': health,
  }


def follow(session, steps, first, last, kept=None):
  """A trail of the steps from `first` to `last`, each step's loss its number.

  `kept` are the sums of the step before `first`, through a file.
  """
  config = session.config.copy_and_resolve_references()
  with config.unlocked():
    config.train.steps = steps
  made = trail.Trail(dataclasses.replace(session, config=config))
  made.restore(first - 1, json.loads(json.dumps(kept)))
  for step in range(first, last + 1):
    made.add(step, step_of(step))
  return made


def test_means_by_hand(session):
  """Of 20 steps whose loss is their number; stopped anywhere."""
  for stop in (0, 1, 2, 9, 18, 19, 20):
    kept = follow(session, 20, 1, stop).state() if stop else None
    found = follow(session, 20, stop + 1, 20, kept).summary()
    assert found['train/loss'] == 19.5 and found['train/averaged_steps'] == 2
    assert found['train/balance/switch_loss'] == 19.5
    assert found['curve'] == {
      'step': [5, 10, 15, 20],
      'loss': [3.0, 8.0, 13.0, 18.0],
    }
    # Two of four experts share the load.
    assert found['train/early_max_violation'] == 1.0
    assert found['train/dead'] == 2.0 and 'not_known' not in found


def test_what_is_not_known_is_left_out_and_said(session):
  """Checkpoints without sums; steps that were added when a run was over."""
  found = follow(session, 20, 13, 20).summary()
  assert found['train/loss'] == 19.5
  assert found['curve'] == {'step': [20], 'loss': [18.0]}
  assert 'train/early_max_violation' not in found
  assert found['not_known'] == (
    'train/early_max_violation, curve (of steps 1 to 15): resumed without sums '
    'of them'
  )
  for first in (20, 21):  # in the last tenth; after the last step
    found = follow(session, 20, first, 20).summary()
    assert set(found) == {'not_known'}
    assert found['not_known'].startswith('train/... (of steps 19 on), train/')
  # The sums of 20 steps, and 20 more: each window has twice as many.
  kept = follow(session, 20, 1, 20).state()
  found = follow(session, 40, 21, 40, kept).summary()
  assert found['train/loss'] == np.mean([37, 38, 39, 40])
  assert found['curve'] == {'step': [30, 40], 'loss': [25.5, 35.5]}
  assert 'train/early_max_violation' not in found
  # Those of a second step are the first half of a first tenth of four.
  kept = follow(session, 20, 1, 2).state()
  found = follow(session, 40, 3, 40, kept).summary()
  assert found['train/early_max_violation'] == 1.0
  assert found['curve']['loss'] == [5.5, 15.5, 25.5, 35.5]
  # A number that JSON has not is none afterwards, either.
  kept['tail'] = {'first': 37, 'last': 40, 'count': 3, 'sums': {'loss': None}}
  assert np.isnan(follow(session, 40, 40, 40, kept)._tail.sums['loss'])


def test_another_rule_within_the_last_tenth(session):
  """It has no mean of both steps, nor has the one that it takes the place of.

  The loss of the rule is gone in step 20, and another's is new.
  """
  follow_ = follow(session, 20, 20, 19, follow(session, 20, 1, 19).state())
  metrics = step_of(20)
  metrics['balance']['other'] = metrics['balance'].pop('switch_loss')
  follow_.add(20, metrics)
  found = follow_.summary()
  assert found['train/loss'] == 19.5
  assert not [k for k in found if 'switch_loss' in k or 'other' in k]
  assert found['not_known'] == (
    'train/balance/other, train/balance/switch_loss: resumed without sums of '
    'them'
  )


def test_an_old_checkpoint_after_the_last_step(session, whole, tmp_path):
  """It has no sums: a run says what it lacks, and a study does not take it."""
  work = tmp_path / 'w'
  shutil.copytree(whole, work)
  (work / 'summary.json').unlink()
  forget(work / 'checkpoints' / '21')
  summary = loop.train(session.config, str(work), session=session)
  _, twin = read(whole)
  lost = {k for k in twin if k.startswith('train/')} | {'curve'}
  # What is still known is what it was.
  known = twin.keys() - lost - TIMINGS
  assert summary.keys() - TIMINGS == known | {'not_known'}
  assert {k: summary[k] for k in known} == {k: twin[k] for k in known}
  assert summary['tokens_per_second'] is None is summary['mfu']


def forget(path):
  """Takes the sums out of a checkpoint, as earlier code wrote them."""
  meta = json.loads((path / 'meta.json').read_text())
  del meta['data']['trail'], meta['data']['clock']
  (path / 'meta.json').write_text(json.dumps(meta))
  (path / 'MANIFEST.json').unlink()
  manifest.write(path)


def test_a_study_does_not_take_half_a_summary(tmp_path, monkeypatch):
  """Its row says why; a run of the same name is made again."""
  study = study_lib.load('configs/ablations/capacity_factor.py:quick')
  run = runner.runs(study)[0]
  half = {'steps': 1, 'not_known': 'curve: resumed without sums of them'}
  monkeypatch.setattr(loop, 'train', lambda *a, **k: half)
  found, _ = origins.find(study, [], str(tmp_path))
  row, _ = runner._one(study, run, found, [], object(), False)
  assert row['status'] == results.FAILED and 'metrics' not in row
  assert 'to be trained anew: curve: resumed without' in row['error']


def test_a_clock_goes_on(monkeypatch):
  """Two starts: 3 steps of 10 tokens, a pause within; then 2 of them."""
  now = [100.0]
  monkeypatch.setattr(clock.time, 'monotonic', lambda: now[0])

  def wait(seconds):
    now[0] += seconds

  first = clock.Clock()
  assert first.tokens_per_second is None is first.step_seconds
  for seconds in (50, 2, 4):  # the first compiles
    wait(seconds)
    first.tick(10)
  assert first.rates() == {'seconds': 56, 'tokens_per_second': 20 / 6}
  with first.paused():
    wait(7)
  kept = json.loads(json.dumps(first.state()))
  wait(1000)
  second = clock.Clock(kept)
  assert second.step_seconds == 3 and second.seconds == 63
  assert second.tokens_per_second == 20 / 6
  wait(50)
  second.tick(10)
  assert second.rates() == {'seconds': 113}
  with second.paused():
    wait(3)
  wait(1)
  second.tick(10)
  assert second.rates() == {'seconds': 117, 'tokens_per_second': 10.0}
  assert second.tokens_per_second == 30 / 7 and second.step_seconds == 1
