"""Rules added and dropped on resume: fresh state, and one line."""

import jax
import numpy as np
import pytest

from moe_jax.runs import checkpoint
from moe_jax.training import (
  fresh_rules,
  session as session_lib,
  state as state_lib,
)
from moe_jax.training.state import TrainState
from tests import saved as saved_lib, tiny

ONE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def state(step, weight, **rules):
  """Of one layer; a rule's state is as it is given."""
  balance = {'decoder': {'moe': {'state': rules}}} if rules else {}
  params = {'w': np.full(3, weight, np.float32)}
  new = TrainState(np.int32(step), params, (), balance)
  return jax.device_put(new, ONE)


@pytest.fixture
def saved(tmp_path):
  with checkpoint.Checkpointer(tmp_path, 2) as checkpoints:
    kept = state(7, 2.0, loss_free_bias=np.float32([0.5, -0.5]))
    checkpoints.save(7, kept, {'data_step': 7})
    checkpoints.wait()
    yield checkpoints


def restore(saved, like):
  said = []
  abstract = jax.tree.map(
    lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=v.sharding), like
  )
  found, data = fresh_rules.restore(saved, abstract, lambda: like, said.append)
  assert data == {'data_step': 7} and int(found.step) == 7
  np.testing.assert_array_equal(found.params['w'], [2, 2, 2])
  return found.balance['decoder']['moe']['state'], said


BIAS, FRESH = np.float32([0.5, -0.5]), np.float32([0.25, 0.75])


def test_the_same_rules_are_restored_and_nothing_is_said(saved):
  found, said = restore(saved, state(0, 0.0, loss_free_bias=FRESH))
  np.testing.assert_array_equal(found['loss_free_bias'], BIAS)
  assert not said


def test_an_added_rule_begins_fresh_beside_one_that_goes_on(saved):
  relu = {'factor': FRESH, 'used': np.float32(3)}
  like = state(0, 0.0, loss_free_bias=FRESH, relu_loss=relu)
  found, said = restore(saved, like)
  np.testing.assert_array_equal(found['loss_free_bias'], BIAS)
  np.testing.assert_array_equal(found['relu_loss']['factor'], FRESH)
  assert float(found['relu_loss']['used']) == 3
  assert said == ['fresh state, which the checkpoint has not: relu_loss']


def test_a_rule_in_place_of_another(saved):
  found, said = restore(saved, state(0, 0.0, bip=FRESH))
  assert list(found) == ['bip']
  np.testing.assert_array_equal(found['bip'], FRESH)
  assert said == [
    'fresh state, which the checkpoint has not: bip',
    'state of the checkpoint that is left out: loss_free_bias',
  ]


def test_other_differences_are_refused_as_ever(saved):
  like = state(0, 0.0, bip=FRESH)
  for params, message in (
    ({'w': like.params['w'][:2]}, r'params/w is \(3,\) float32 in it'),
    (
      {'v': like.params['w']},
      'params/v is not in it; .*params/w is in it only',
    ),
  ):
    with pytest.raises(ValueError, match=message):
      restore(saved, like.replace(params=params))


def test_evaluation_and_generation_go_with_the_new_rules(tmp_path, monkeypatch):
  """Between `--allow=moe.balance` and the next save; any step is asked for."""
  fields = {'model.num_layers': 1, 'moe.layers': 'all', 'moe.balance': ()}
  config = tiny.config(**fields)
  saved_lib.run(config, tmp_path, steps=(3, 5))
  with config.unlocked():
    config.moe.balance = ('loss_free_bias()',)
  session = session_lib.plan(config, splits=())
  fresh = saved_lib.state(config)
  monkeypatch.setattr(state_lib, 'init', lambda *_: fresh)
  for step, want in ((None, 5), (3, 3)):
    found, _ = fresh_rules.of_run(session, tmp_path, step)
    assert int(found.step) == want
    assert jax.tree.structure(found) == jax.tree.structure(fresh)
