"""Branch-Train-MiX: experts are the branches', all else their mean."""

import jax
import numpy as np
import pytest

from moe_jax import registry
from moe_jax.errors import UserError
from tests.conversion import loops

EXPERTS = ('wi_gate', 'wi_up', 'wo')


def mix(*models, spec='mix()'):
  return registry.build('conversion.methods', spec)(jax.random.key(0), *models)


def branches(n=3):
  return [loops.dense(seed=s) for s in range(n)]


def test_experts_are_the_branches_and_all_else_the_mean():
  models = branches()
  made = mix(*models)
  assert made.config.moe.num_experts == 3
  assert made.config.moe.balance == ('switch_loss(weight=0.01)',)
  for i, layer in enumerate(made.layers):
    for e, model in enumerate(models):
      for k in EXPERTS:
        own = model.layers[i][f'ffn/ffn/{k}']
        np.testing.assert_array_equal(layer[f'moe/experts/{k}'][e], own)
    assert layer['moe/router/kernel'].shape == (loops.D, 3)
  mean = lambda arrays: np.mean([a.astype('f8') for a in arrays], 0).astype(
    'f4'
  )
  for k, v in made.rest.items():
    np.testing.assert_array_equal(v, mean([m.rest[k] for m in models]))
  for k in ('attention/query', 'attention_norm/scale'):
    own = [m.layers[1][k] for m in models]
    np.testing.assert_array_equal(made.layers[1][k], mean(own))
  norms = [m.layers[1]['ffn_norm/scale'] for m in models]
  np.testing.assert_array_equal(made.layers[1]['moe_norm/scale'], mean(norms))


@pytest.mark.parametrize(
  'router', ['top_k(k=2)', 'top_k(k=3)', 'sample_top_1()', 'switch()']
)
def test_one_branch_repeated_is_itself(router):
  """Where weights sum to 1: top-2, soft; and top-1 where it is sure."""
  model, x_TD = loops.dense(), loops.tokens()
  made = mix(model, model, model, spec=f'mix(router={router!r})')
  loops.same(made, model, but=('ffn', 'moe'))
  total_T1 = loops.weights(made, 1, x_TD).sum(1, keepdims=True)
  assert np.allclose(total_T1, 1) == ('switch' not in router)
  expected = loops.outputs(model, 1, x_TD) * total_T1
  np.testing.assert_allclose(loops.outputs(made, 1, x_TD), expected, rtol=1e-6)


def test_a_branch_alone_is_itself():
  model, x_TD = loops.dense(), loops.tokens()
  made = mix(model)
  assert made.config.moe.router == 'top_k(k=1, renormalize=False)'
  y_TD = loops.outputs(made, 0, x_TD)
  np.testing.assert_allclose(y_TD, loops.outputs(model, 0, x_TD), rtol=1e-6)


def test_split_has_the_slices_of_each():
  models, x_TD = branches(2), loops.tokens()
  made = mix(*models, spec="mix(arranged='split', parts=4)")
  assert (made.config.moe.num_experts, made.config.moe.d_ff) == (8, 8)
  layer = made.layers[1]
  for n, model in enumerate(models):
    # All slices of a branch, with weights of 1, are its FFN.
    y_TD = sum(
      loops.ffn(
        {k: layer[f'moe/experts/{k}'][4 * n + c] for k in EXPERTS}, x_TD
      )
      for c in range(4)
    )
    np.testing.assert_allclose(y_TD, loops.outputs(model, 1, x_TD), rtol=1e-5)


def test_blend_has_a_part_of_every_branch():
  models = branches(2)
  made = mix(*models, spec="mix(arranged='blend', parts=4)")
  assert (made.config.moe.num_experts, made.config.moe.d_ff) == (4, 16)
  for c in range(4):
    part = slice(8 * c, 8 * c + 8)
    wi, wo = (made.layers[0][f'moe/experts/{k}'][c] for k in ('wi_up', 'wo'))
    for n, model in enumerate(models):
      own = slice(8 * n, 8 * n + 8)
      theirs = model.layers[0]
      np.testing.assert_array_equal(
        wi[:, own], theirs['ffn/ffn/wi_up'][:, part]
      )
      np.testing.assert_array_equal(wo[own], theirs['ffn/ffn/wo'][part])


def test_some_layers_and_no_balancing():
  models = branches(2)
  made = mix(*models, spec="mix(layers='1', balance=())")
  assert made.sparse == (False, True, False)
  assert made.config.moe.balance == ()
  mean = np.mean([m.layers[0]['ffn/ffn/wo'] for m in models], 0, 'f8')
  np.testing.assert_array_equal(made.layers[0]['ffn/ffn/wo'], mean.astype('f4'))


@pytest.mark.parametrize(
  'spec, message',
  [
    ("mix(arranged='woven')", "unknown arranged 'woven'"),
    ('mix(parts=2)', "parts=2 of FFNs that are arranged as 'whole'"),
    ("mix(arranged='split', parts=5)", 'd_ff=32: 5 slices do not divide it'),
  ],
)
def test_errors(spec, message):
  with pytest.raises(UserError, match=message):
    mix(*branches(2), spec=spec)


def test_what_experts_share_is_refused():
  fields = {'model.ffn': 'shared_low_rank(rank=2)'}
  models = [loops.dense(seed=s, **fields) for s in range(2)]
  with pytest.raises(UserError, match='all experts share wi, and the models'):
    mix(*models)
  made = mix(models[0], models[0])
  assert made.layers[0]['moe/experts/wi'].ndim == 2
  assert made.layers[0]['moe/experts/wi_a'].ndim == 3
