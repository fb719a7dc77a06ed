"""The first value that is not finite is named by its layer, either way."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.runs import checkpoint
from moe_jax.training import (
  loop,
  nonfinite,
  session as session_lib,
  state as state_lib,
  step as step_lib,
)
from tests import mains, test_resume, tiny

made, runs = test_resume.made, test_resume.runs  # the fixtures

PLACES = {'tower': tuple(('loop', 'block', i) for i in range(3))}


def tower(w_TD, x_D, mask_D):
  """Three layers in a loop, two modules in each; a mask, and a head."""

  def layer(x_D, w_D):
    with jax.named_scope('loop/block/attention'):
      x_D = jnp.where(mask_D, x_D, -jnp.inf)
      x_D = jax.nn.softmax(x_D)
    with jax.named_scope('loop/block/ffn'):
      return x_D + jnp.sqrt(w_D) * x_D, ()

  with jax.named_scope('tower'):
    x_D, _ = jax.lax.scan(layer, x_D, w_TD)
  with jax.named_scope('head'):
    return (x_D**2).sum()


def named(w_TD, x_D=None, f=tower):
  x_D = jnp.arange(4.0) if x_D is None else x_D
  mask_D = jnp.array([True, True, True, False])
  bad, codes = nonfinite.marks(f, w_TD, x_D, mask_D)
  fresh, _ = nonfinite.marks(f, jnp.ones((3, 4)), jnp.arange(4.0), mask_D)
  found = nonfinite.first(bad, fresh)
  return found and (nonfinite.describe(found[0], PLACES), found[1]), codes


def test_the_layer_and_module_is_that_of_the_first():
  ones = jnp.ones((3, 4))
  assert named(ones) == (None, [0])
  for layer in range(3):
    found, codes = named(ones.at[layer, 1].set(-1.0))
    assert found == (f'in tower/layer_{layer}/ffn', 2) and codes == [2]
  assert named(ones, jnp.array([1.0, jnp.nan, 1, 1]))[0] == (
    'in tower/layer_0/attention',
    2,
  )


def test_a_gradient_alone_is_said_to_be_backward():
  """The root of 0 has a value and no slope."""
  w_TD = jnp.ones((3, 4)).at[1, 2].set(0.0)
  slope = jax.value_and_grad(tower)
  found, codes = named(w_TD, f=slope)
  assert found == ('in tower/layer_1/ffn, backward', 1)
  assert codes[0] == 0 < codes[1]


def test_it_looks_when_the_step_runs_again(runs, monkeypatch, capsys):
  at = []

  def report(run, step, state, batch):
    at.append((step, int(state.step), np.asarray(batch['targets']).tolist()))
    return 'a nan is first made in decoder/layer_3/moe'

  monkeypatch.setattr(nonfinite, 'report', report)
  # as by --debug_nonfinite
  monkeypatch.setitem(loop.train.__kwdefaults__, 'debug_nonfinite', True)
  runs.number = lambda step: np.nan if step == 4 else 1.0
  with pytest.raises(FloatingPointError):
    runs()
  ((step, before, targets),) = at
  assert (step, before) == (4, 3)  # the state from before it
  assert targets == runs.rows[-8:]
  assert 'first made in decoder/layer_3/moe' in capsys.readouterr().out


def test_it_looks_where_the_flag_says_so(tmp_path, monkeypatch):
  class TrainedError(Exception):
    pass

  def trained(*args, debug_nonfinite, **rest):
    raise TrainedError(debug_nonfinite)

  monkeypatch.setattr(loop, 'train', trained)
  given = '--config=tests/tiny.py', f'--workdir={tmp_path}'
  for flags, wanted in (((), False), (('--debug_nonfinite',), True)):
    with pytest.raises(TrainedError) as e:
      mains.call('train', *given, *flags)
    assert e.value.args == (wanted,)


@pytest.fixture(scope='module')
def model():
  """(session, state, batch) of four layers, the MoE layers 1 and 3."""
  config = tiny.config(**{'model.num_layers': 4})
  s = session_lib.plan(config)
  state = state_lib.init(s.model, s.tx, s.dummy, 0, s.shardings)
  rng = np.random.default_rng(0)
  batch = s.problem.dummy(8)
  for name in ('inputs', 'targets'):
    ids = rng.integers(3, 259, batch['inputs'].shape)
    batch[name] = jnp.asarray(ids, jnp.int32)
  return s, state, batch


@pytest.mark.slow
@pytest.mark.parametrize(
  ('leaf', 'at', 'value', 'says'),
  [
    ('block_0/attention/query', 1, np.inf, 'in decoder/layer_2/attention'),
    ('block_1/moe/experts/wo', 0, np.nan, 'in decoder/layer_1/moe'),
    ('block_1/moe/router/kernel', 1, np.nan, 'in decoder/layer_3/moe'),
    ('final_norm/scale', 0, 1e30, 'first made in what is around the model;'),
  ],
)
def test_parameters_that_are_broken_are_found(model, leaf, at, value, says):
  s, state, batch = model
  leaves = checkpoint.named(state.params)
  (name,) = (k for k in leaves if k.endswith(leaf))
  leaves[name] = leaves[name].at[at].set(value)
  params = jax.tree.structure(state.params).unflatten(leaves.values())

  class Run:
    session = s
    plain_step = lambda self: step
    fresh = lambda self: state

  step = step_lib.make_train_step(s.model, s.tx, problem=s.problem, seed=0)
  broken = dataclasses.replace(state, params=params)
  line = nonfinite.report(Run(), 7, broken, batch)
  assert line.startswith('step 7: ') and says in line
  assert '; after the update not finite: params/decoder/' in line
