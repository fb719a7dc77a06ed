"""FlexOlmo: who leaves takes what was theirs, to the bit."""

import dataclasses

import jax
import numpy as np
import pytest

from configs import base as base_config
from moe_jax import registry
from moe_jax.conversion import hub, trees, workdirs
from moe_jax.errors import UserError
from tests import hub_folders
from tests.conversion import loops

E = {'moe.num_experts': 2}


def run(spec, *models):
  return registry.build('conversion.methods', spec)(jax.random.key(0), *models)


def owner(seed, router='gpt_oss(k=2)', **fields):
  """A public model; expert 1, its row, bias and state are the owner's."""
  public, own = (loops.sparse(router, s, **E, **fields) for s in (0, seed))
  layers, balance = [], []
  for i, sparse in enumerate(public.sparse):
    layer = dict(public.layers[i])
    if sparse:
      for k in layer:
        if k.startswith(('moe/experts/', 'moe/router/')):
          axis = layer[k].ndim - 1 if 'router' in k else 0
          parts = [m.layers[i][k] for m in (public, own)]
          layer[k] = np.stack(
            [np.take(p, e, axis) for e, p in enumerate(parts)], axis
          )
    layers.append(layer)
    balance.append(
      {
        k: np.array([v[0], own.balance[i][k][1]])
        for k, v in public.balance[i].items()
      }
    )
  return public.replace(layers=tuple(layers), balance=tuple(balance))


A, B, C = 1, 2, 3


@pytest.mark.parametrize('k', [0, 2, 4])
@pytest.mark.parametrize(
  'router',
  ['gpt_oss(k=2)', 'top_k(k=2, renormalize=False)', 'flex_olmo(k=2)'],
)
def test_to_opt_out_is_not_to_have_been_there(router, k):
  a, b, c = (owner(s, router) for s in (A, B, C))
  merged = run(f'flex(k={k})', a, b, c)
  left = run('remove(experts=(2,))', merged)
  without = run(f'flex(k={k})', a, c)
  loops.same(left, without)
  assert left.config == without.config
  assert (
    registry.build('routers', left.config.moe.router).k == {0: 2, 2: 2, 4: 3}[k]
  )
  assert trees.digest(left) == trees.digest(without)
  assert trees.digest(left) != trees.digest(run(f'flex(k={k})', a, b))


def test_the_anchor_cannot_leave(tmp_path):
  merged = run('flex()', owner(A, 'flex_olmo(k=2)'), owner(B, 'flex_olmo(k=2)'))
  use = tmp_path / 'loads.json'
  use.write_text('[[1, 2, 3], [2, 1, 3]]')
  for spec in (
    'remove(experts=(0,))',
    f"prune(num_experts=2, loads='{use}')",
    'permute(order=(1, 0, 2))',
  ):
    with pytest.raises(UserError, match='expert 0 has to stay expert 0: the r'):
      run(spec, merged)
  around = registry.build('routers', "forced(router='flex_olmo(k=2)')")
  assert around.anchors == 1
  # A router of rows alone measures nobody by another.
  assert run('remove(experts=(0,))', owner(A)).config.moe.num_experts == 1


def test_the_public_expert_is_first_and_rows_are_the_owners():
  a, b, c = (owner(s) for s in (A, B, C))
  merged = run('flex()', a, b, c)
  assert merged.config.moe.num_experts == 4
  for i in (0, 2):
    layer = merged.layers[i]
    for k in ('moe/experts/wo', 'moe/experts/wi_up'):
      np.testing.assert_array_equal(layer[k][0], a.layers[i][k][0])
    for e, own in enumerate((a, b, c), 1):
      theirs = own.layers[i]
      np.testing.assert_array_equal(
        layer['moe/experts/wo'][e], theirs['moe/experts/wo'][1]
      )
      kernel = 'moe/router/kernel'
      np.testing.assert_array_equal(layer[kernel][:, e], theirs[kernel][:, 1])
      bias = 'moe/router/bias'
      assert layer[bias][e] == theirs[bias][1]
  loops.same(run('flex()', a), a)


@pytest.mark.parametrize(
  'name, at, message',
  [
    (
      'moe/experts/wo',
      (0, 3, 4),
      'expert 0 of layer 2 moe/experts/wo of model 1',
    ),
    (
      'moe/router/kernel',
      (3, 0),
      'expert 0 of layer 2 moe/router/kernel of mod',
    ),
    ('attention/query', (0, 0, 0), 'flex: layer 2 attention/query of model 1'),
  ],
)
def test_what_was_not_frozen(name, at, message):
  a, b = owner(A), owner(B)
  layers = list(map(dict, b.layers))
  layers[2][name] = layers[2][name].copy()
  layers[2][name][at] = np.nextafter(layers[2][name][at], 9, dtype='f4')
  with pytest.raises(UserError, match=message):
    run('flex()', a, dataclasses.replace(b, layers=tuple(layers)))


def test_an_owner_comes_once():
  a, b = owner(A), owner(B)
  with pytest.raises(UserError, match='flex: models 0 and 2 are the same to'):
    run('flex()', a, b, owner(A))


def test_a_model_that_has_no_experts():
  with pytest.raises(
    UserError, match=r"moe.layers='none': there are no experts"
  ):
    run('flex()', loops.dense())
  alone = loops.sparse(
    'top_k(k=1, renormalize=False)', **{'moe.num_experts': 1}
  )
  with pytest.raises(UserError, match='no expert beside number 0'):
    run('flex()', alone)


def olmo(router):
  """A config of FlexOlmo's class with three experts, made by the merge."""
  said = hub_folders.config('flex_olmo', num_local_experts=2)
  config = workdirs.described(said, base_config.get_config())
  config = trees.with_fields(config, {'moe.router': router})
  model = loops.random(config, loops.shapes(config))
  row, flip = 'moe/router/kernel', np.float32((1, -1))
  flipped = tuple(m | {row: m[row] * flip} for m in model.layers)
  other = model.replace(layers=flipped)
  merged = run('flex(k=3)', model, other).config
  return trees.with_fields(merged, {'model.vocab_size': said['vocab_size']})


def test_their_class_has_no_bias():
  family, said = hub.config_of(olmo('top_k(k=2, renormalize=False)'))
  assert (family.name, said['num_experts']) == ('flex_olmo', 3)
  assert said['num_experts_per_tok'] == 3
  with pytest.raises(UserError, match='no family can say this model'):
    hub.config_of(olmo('gpt_oss(k=2)'))
