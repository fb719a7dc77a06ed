"""The soup: averages in float64, of models that fit."""

import jax
import numpy as np
import pytest

from moe_jax import registry
from moe_jax.errors import UserError
from tests.conversion import loops


def soup(*models, spec='soup()'):
  return registry.build('conversion.methods', spec)(jax.random.key(0), *models)


@pytest.mark.parametrize('n', [1, 3, 7])
def test_equal_parts_give_themselves(n):
  """In float32 the sum of three thirds is not the whole."""
  model = loops.sparse()
  loops.same(soup(*[model] * n), model)


def test_it_is_the_mean_in_float64():
  """Of numbers whose float32 sum is another."""
  models = [loops.sparse(seed=s) for s in range(3)]
  made = soup(*models)
  for name in ('moe/experts/wo', 'moe/router/kernel', 'attention/query'):
    parts = np.stack([m.layers[2][name].astype(np.float64) for m in models])
    expected = parts.mean(0).astype(np.float32)
    np.testing.assert_array_equal(made.layers[2][name], expected)
  table = np.stack([m.rest['embedding/table'] for m in models])
  np.testing.assert_array_equal(
    made.rest['embedding/table'], table.astype(np.float64).mean(0).astype('f4')
  )
  bias = 'moe/state/loss_free_bias'
  mean = np.mean([m.balance[0][bias] for m in models], 0, np.float64)
  np.testing.assert_array_equal(made.balance[0][bias], mean.astype('f4'))
  loops.same(made, soup(*models[::-1]))


def test_weights():
  a, b = loops.dense(0), loops.dense(1)
  loops.same(soup(a, b, spec='soup(weights=(0.0, 2.0))'), b)
  made = soup(a, b, spec='soup(weights=(1.0, 3.0))').layers[1]['ffn/ffn/wo']
  expected = (a.layers[1]['ffn/ffn/wo'] + 3.0 * b.layers[1]['ffn/ffn/wo']) / 4
  np.testing.assert_allclose(made, expected, rtol=1e-5)


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'model.num_layers': 2}, 'model.num_layers is 3 in the first model, 2 in'),
    ({'model.d_ff': 16}, 'model.d_ff is 32'),
    ({'model.norm_eps': 1e-5}, 'model.norm_eps is 1e-06'),
    ({'model.vocab_size': 400}, 'model.vocab_size is 0'),
    ({'moe.layers': 'all'}, "moe.layers is 'none' in the first model, 'all'"),
  ],
)
def test_models_that_differ(fields, message):
  with pytest.raises(UserError, match=message):
    soup(loops.dense(), loops.dense(**fields))


def test_a_weight_for_each():
  with pytest.raises(UserError, match='are 2, the models 1'):
    soup(loops.dense(), spec='soup(weights=(0.5, 0.5))')
  with pytest.raises(UserError, match='valid: some above 0'):
    soup(loops.dense(), spec='soup(weights=(0.0,))')
