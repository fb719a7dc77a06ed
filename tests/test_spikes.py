"""Losses far above those before: found, run again, gone back from, passed over.

The loop is the real one with its files, as in test_resume; its steps report
the losses that a test gives them, by the rows that they are trained on.
"""

import json
import signal

import jax
import numpy as np
import pytest

from moe_jax.runs import checkpoint
from moe_jax.training import spikes
from tests import test_resume, tiny

made, runs = test_resume.made, test_resume.runs  # the fixtures
SPIKE = {
  'train__on_spike': 'rollback(window=4, deviations=6, batches=3, most=2)',
  'train__steps': 16,
  'train__checkpoint_every': 3,
}


class Watched:
  """Steps whose loss follows from their rows, and whose state from both."""

  def __init__(self, runs, made, bad, height=50.0):
    self.runs, self.bad, self.height = runs, set(bad), height
    size, data = made.config.train.batch_size, made.data
    self.batch_of = {
      str(data.batch(seed=0, batch_size=size, step=i)['targets'].tolist()): i
      for i in range(40)
    }
    self.size, self.seen, self.hurt = size, [], lambda state, step: state
    runs.number, runs.hurt = self.loss, self.step

  def loss(self, step):
    batch = self.batch_of[str(self.runs.rows[-self.size :])]
    self.seen.append((step, batch))
    return self.height if batch in self.bad else 3.0 + 0.1 * np.sin(batch)

  def step(self, state, step):
    """Its parameters remember the batches in their order."""
    _, batch = self.seen[-1]
    params = jax.tree.map(lambda v: 0.5 * v + np.float32(batch), state.params)
    return self.hurt(state.replace(params=params), step)


def end(runs):
  """What a run comes to: lines, and the manifest of its last step's arrays."""
  lines = (runs.workdir / 'metrics.jsonl').read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  for row in rows:
    for clock in ('seconds', 'tokens_per_second'):
      row.pop(clock, None)
  last = max(checkpoint.steps(runs.workdir / 'checkpoints'))
  with checkpoint.Checkpointer(runs.workdir / 'checkpoints', 1) as c:
    state, _ = c.restore(runs._made.abstract_state, last)
  leaves = checkpoint.named(state).items()
  return rows, {k: np.asarray(v).tobytes() for k, v in leaves}


def test_it_goes_back_and_past_the_batches(runs, made, capsys):
  """Step 8 spikes: back to step 6, past the batches 6, 7 and 8."""
  watched = Watched(runs, made, bad=[7])
  summary = runs(**SPIKE)
  order = [*range(8), 8, 6, 7, 8, *range(9, 19)]
  # Twice the eighth step: to tell the machine from the data.
  assert [b for _, b in watched.seen] == order
  assert summary['rollbacks'] == 1 and summary['steps'] == 16
  rows, _ = end(runs)
  assert [r['step'] for r in rows] == list(range(1, 17))
  assert [r['rollbacks'] for r in rows] == [0] * 6 + [1] * 10
  assert max(r['loss'] for r in rows) < 4
  assert runs.meta(16)['rows'] == 19 * 8
  out = capsys.readouterr().out
  assert 'loss 50 is' in out and 'the median of 4 steps at step 8, which' in out
  assert (
    'the same bits when run again: data or optimisation; back to step 6, past'
    ' rows 48 to 71 (rollback 1 of 2)' in out
  )


def test_an_interrupted_run_comes_to_the_same_bits(runs, made, tmp_path):
  """Stopped or dead: before, between, and after the two spikes."""
  straight = test_resume.Runs(made, tmp_path / 'straight')
  Watched(straight, made, bad=[7, 12])
  summary = straight(**SPIKE)
  assert summary['rollbacks'] == 2
  watched = Watched(runs, made, bad=[7, 12])
  # (step, batch): of the second, nothing since the rollback was saved; the
  # third saves a step that an undisturbed run cannot go back to.
  stops = {(5, 4): 1, (7, 9): 0, (8, 10): 1, (8, 14): 1, (11, 17): 0}

  def hurt(state, step):
    told = stops.pop((step, watched.seen[-1][1]), None)
    if told == 0:
      raise ZeroDivisionError
    if told == 1:
      signal.raise_signal(signal.SIGTERM)
    return state

  watched.hurt = hurt
  for _ in range(6):
    try:
      again = runs(**SPIKE)
    except (ZeroDivisionError, KeyboardInterrupt):
      pass
  assert not stops
  assert end(runs) == end(straight)
  for name in ('rollbacks', 'curve', 'train/loss'):
    assert again[name] == summary[name], name


def test_too_many_end_the_run(runs, made):
  Watched(runs, made, bad=[7, 9, 11])
  with pytest.raises(FloatingPointError) as e:
    runs(**SPIKE)
  assert '2 rollbacks were all (train.on_spike); last good checkpoint: ' in str(
    e.value
  )
  assert not (runs.workdir / 'summary.json').exists()


def test_one_that_does_not_come_again_is_the_machines(runs, made, capsys):
  """And the run ends as if it had not been: nothing is passed over."""
  watched = Watched(runs, made, bad=[7])
  watched.hurt = lambda state, step: (
    (step == 8 and watched.bad.clear()) or state
  )
  summary = runs(**SPIKE)
  assert summary['rollbacks'] == 0 and runs.meta(16)['rows'] == 16 * 8
  out = capsys.readouterr().out
  assert 'but it was good when run again: the machine, or operations' in out


def test_a_spike_is_far_from_the_median_by_the_spread():
  found = spikes.Spikes(spikes.Rollback(window=5, deviations=6))
  values = [3.0, 3.1, 2.9, 3.05, 100.0]  # a full window first, whatever it has
  assert [found.add(v) for v in values] == [''] * 5
  spread = 1.4826 * 0.05  # of the deviations 0.05, 0.05, 0.15, 0, 97
  assert found.add(3.05 + 6.5 * spread).startswith('loss 3.53')
  again = spikes.Spikes(spikes.Rollback(window=5, deviations=6), found.state())
  assert again.add(3.05 + 6.5 * spread)  # it was not counted in
  assert not again.add(3.05 + 5.5 * spread)
  assert not found.add(0.1)  # far below is none
  flat = spikes.Spikes(spikes.Rollback(window=3))
  assert not any(flat.add(2.0) for _ in range(4))
  assert not flat.add(2.0 + 1e-6) and flat.add(2.1)
  off = spikes.Spikes(None)
  assert not any(off.add(v) for v in (1.0,) * 99 + (1e9,)) and not off.counted()


@pytest.mark.parametrize(
  ('spec', 'says'),
  [
    ('stop()', "unknown train.on_spike 'stop'; valid: ignore, rollback"),
    ('rollback(window=1)', 'window=1; a whole number of at least 3'),
    ('rollback(deviations=0)', 'deviations=0; a number above 0'),
    ('rollback(times=3)', 'times'),
  ],
)
def test_other_values_are_refused(spec, says):
  with pytest.raises(ValueError, match=says):
    spikes.policy(tiny.config(**{'train.on_spike': spec}))
