"""A step that is not finite changes nothing, is counted, and ends no run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moe_jax.models import factory
from moe_jax.parallel import mesh as mesh_lib
from moe_jax.problems import base as problems
from moe_jax.training import (
  session as session_lib,
  skips,
  state as state_lib,
  step as step_lib,
)
from tests import test_resume, tiny

made, runs = test_resume.made, test_resume.runs  # the fixtures


def test_the_state_is_what_it_was_to_the_bit():
  """Parameters, moments, balancing: all but the step. And a good step moves."""
  config = tiny.config(
    **{
      'model.num_layers': 1,
      'moe.layers': 'all',
      'moe.balance': ('switch_loss()', 'loss_free_bias(rate=0.5)'),
    }
  )
  model, tx = factory.make(config, 384), optax.adam(0.1)
  problem = problems.of(config)
  batch = session_lib.dummy(config, problem, mesh_lib.single())
  lay = state_lib.layout(model, batch)
  rng = np.random.default_rng(0)
  draw = lambda v: jnp.asarray(0.1 * rng.standard_normal(v.shape), v.dtype)
  params, balance = jax.tree.map(draw, (lay.params, lay.balance))
  state = state_lib.TrainState(jnp.int32(4), params, tx.init(params), balance)
  ids = jnp.asarray(rng.integers(3, 259, batch['inputs'].shape), jnp.int32)
  whole = jnp.ones_like(ids)
  batch |= {'inputs': ids, 'targets': ids, 'segments': whole}
  make = step_lib.make_train_step
  step = jax.jit(make(model, tx, problem=problem, seed=0, skip=True))
  bad = params | {
    'embedding': jax.tree.map(
      lambda v: v.at[0].set(jnp.nan), params['embedding']
    )
  }
  bits = lambda tree: [np.asarray(v).tobytes() for v in jax.tree.leaves(tree)]
  for first, skipped in ((params, False), (bad, True)):
    before = state.replace(params=first)
    after, metrics = step(before, batch)
    assert bool(metrics['skipped']) == skipped
    assert np.isfinite(float(metrics['loss'])) != skipped
    assert int(after.step) == 5
    for name in ('params', 'opt_state', 'balance'):
      same = bits(getattr(before, name)) == bits(getattr(after, name))
      assert same == skipped, name


SKIP = {'train__on_nonfinite': 'skip', 'train__max_skips': 2}


def skipping(runs, bad):
  """The loop's own steps say that these were passed over."""
  runs.number = lambda step: np.nan if step in bad else float(step)
  runs.extra = lambda step: {'skipped': step in bad}


def rows(runs):
  lines = (runs.workdir / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_they_are_counted_over_all_starts(runs):
  skipping(runs, {2, 3, 5})
  many = {'train__steps': 6, 'train__checkpoint_every': 3} | SKIP
  hurt = runs.hurt
  runs.hurt = lambda state, step: 1 / 0 if step == 5 else state
  with pytest.raises(ZeroDivisionError):
    runs(**many)
  assert runs.meta(3)['skips'] == {'total': 2, 'in_row': 2}
  runs.hurt = hurt
  summary = runs(**many)
  assert [r['skipped'] for r in rows(runs)] == [0, 1, 2, 2, 3, 3]
  assert [r['loss'] for r in rows(runs)] == [1, None, None, 4, None, 6]
  assert summary['skipped'] == 3 and 'not_known' not in summary
  assert summary['curve'] == {'step': [1, 4, 6], 'loss': [1, 4, 6]}
  assert (summary['train/loss'], summary['train/averaged_steps']) == (6, 1)


def test_too_many_in_a_row_end_the_run(runs):
  skipping(runs, {2, 4, 5, 6})
  message = r'loss is nan, the 3\. in a row \(train\.max_skips=2\), at step 6;'
  with pytest.raises(
    FloatingPointError, match=f'{message} last good .* step 4'
  ):
    runs(train__steps=9, **SKIP)


def test_without_it_the_run_stops_and_counts_nothing(runs):
  runs.number = lambda step: np.nan if step == 3 else 1.0
  with pytest.raises(FloatingPointError, match='loss is nan at step 3'):
    runs()
  assert 'skipped' not in rows(runs)[0]
  with pytest.raises(ValueError, match="on_nonfinite='go'; valid: stop, skip"):
    skips.check(tiny.config(**{'train.on_nonfinite': 'go'}))
