"""A model off the device: by layer, and back into a workdir bit by bit."""

import numpy as np
import pytest

from moe_jax.conversion import trees, workdirs
from moe_jax.errors import UserError
from moe_jax.runs import checkpoint
from tests.conversion import loops

FIELDS = {
  'model.num_layers': 5,
  'moe.layers': 'every_2',
  'moe.capacity_factor': 0.0,
  'moe.eval_capacity_factor': 0.0,
  'moe.router': 'sigmoid_top_k(k=2)',
  'moe.balance': ('loss_free_bias()',),
  'train.optimizer': 'adamw()',
}


def leaves(workdir):
  directory = workdir / 'checkpoints'
  read = workdirs.restored(directory, checkpoint.shapes(directory), None)
  return {k: np.asarray(v) for k, v in read.items()}


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  path = tmp_path_factory.mktemp('trees') / 'run'
  loops.write_run(path, 3, **FIELDS)
  return path


@pytest.mark.slow
def test_factored_moments_there_and_back(tmp_path):
  factored = {'train.optimizer': 'adafactor(min_dim=4, momentum=0.9)'}
  loops.write_run(tmp_path / 'run', 3, **(FIELDS | factored))
  test_there_and_back(tmp_path / 'run', tmp_path, True)


@pytest.mark.parametrize('optimizer', [True, False])
def test_there_and_back(run, tmp_path, optimizer):
  model = trees.read(run, optimizer=optimizer)
  assert model.sparse == (False, True, False, True, False)
  assert model.layers[3]['moe/experts/wi'].shape == (4, 16, 32)
  assert model.layers[4]['ffn/ffn/wi'].shape == (16, 32)
  assert model.balance[1]['moe/state/loss_free_bias'].shape == (4,)
  new = tmp_path / 'new'
  trees.write(new, model, {'method': 'none'})
  there, here = leaves(run), leaves(new)
  assert checkpoint.steps(new / 'checkpoints') == [0]
  assert here.pop('step') == 0 and there.pop('step') == 7
  assert there.keys() == here.keys()
  for name, value in there.items():
    if name.startswith('opt_state/') and not optimizer:
      value = np.zeros_like(value)
    np.testing.assert_array_equal(here[name], value, err_msg=name)
  again = trees.read(new)
  assert trees.digest(again) == trees.digest(model)
  assert again.config == model.config


def test_a_digest_is_of_the_parameters(run):
  model = trees.read(run)
  other = trees.mapped(
    model, lambda i, name, v: v + (name == 'moe/router/kernel' and i == 3)
  )
  assert trees.digest(other) != trees.digest(model)
  of_state = trees.mapped(model, lambda i, name, v: v + ('state' in name))
  assert trees.digest(of_state) == trees.digest(model)


@pytest.mark.parametrize(
  'name, change, message',
  [
    ('moe/experts/wi', lambda v: v[1:], r'wi is \(3, 16, 32\), not \(4, 16'),
    ('moe/experts/wi', None, 'layer_1/moe/experts/wi is missing'),
    ('moe/fog', lambda v: v, 'decoder/layer_1/moe/fog is in no layer'),
  ],
)
def test_what_is_no_such_model(run, tmp_path, name, change, message):
  model = trees.read(run)
  layers = list(map(dict, model.layers))
  value = layers[1].pop(name, np.zeros(1))
  if change:
    layers[1][name] = change(value)
  with pytest.raises(UserError, match=message):
    trees.write(tmp_path / 'new', model.replace(layers=tuple(layers)), {})
  assert not list(tmp_path.iterdir())
