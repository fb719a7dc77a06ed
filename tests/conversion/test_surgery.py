"""Experts moved, copied, cut, removed and merged: what stays as it was."""

import json

import jax
import numpy as np
import pytest

from moe_jax import registry
from moe_jax.errors import UserError
from tests.conversion import loops

SOFTMAX = ('top_k(k=2)', 'top_k(k=2, renormalize=False)')
SIGMOID = 'sigmoid_top_k(k=2, renormalize=False)'
SHARED_OUT = 'sigmoid_top_k(k=2)'
BIASED = {
  'moe.experts': "mlp(activation='relu', bias=True)",
  'model.ffn': "mlp(activation='relu')",
}


def run(spec, *models, seed=0):
  method = registry.build('conversion.methods', spec)
  return method(jax.random.key(seed), *models)


def same_outputs(made, model, rtol=1e-6):
  x_TD = loops.tokens()
  for i in (0, 2):
    old_TD = loops.outputs(model, i, x_TD)
    new_TD = loops.outputs(made, i, x_TD)
    bound = rtol * np.abs(old_TD).max()
    np.testing.assert_allclose(new_TD, old_TD, rtol=0, atol=bound)


@pytest.mark.parametrize('router', [SOFTMAX[1], SHARED_OUT])
def test_an_order_changes_nothing(router):
  model = loops.sparse(router, optimizer=True)
  order = (2, 0, 3, 1)
  made = run(f'permute(order={order})', model)
  same_outputs(made, model)
  loops.same(model, made, but='moe/')
  old, new = model.layers[2], made.layers[2]
  mu = next(k for k in model.moments if k.endswith('mu'))
  for e, was in enumerate(order):
    for k in ('moe/experts/wo', 'moe/experts/wi_up'):
      np.testing.assert_array_equal(new[k][e], old[k][was])
      theirs = [m.moments[mu].layers[2][k] for m in (made, model)]
      np.testing.assert_array_equal(theirs[0][e], theirs[1][was])
    kernel = [
      m.moments[mu].layers[2]['moe/router/kernel'] for m in (made, model)
    ]
    np.testing.assert_array_equal(kernel[0][:, e], kernel[1][:, was])
    bias = [m.balance[2]['moe/state/loss_free_bias'] for m in (made, model)]
    assert bias[0][e] == bias[1][was]
  back = run(f'permute(order={tuple(np.argsort(order).tolist())})', made)
  loops.same(back, model)


def test_an_order_is_drawn():
  model = loops.sparse()
  made = run('permute()', model, seed=1)
  same_outputs(made, model)
  wo = [m.layers[0]['moe/experts/wo'] for m in (made, model)]
  assert wo[0].tobytes() != wo[1].tobytes()


NODES = 'sigmoid_top_k(k=2, groups=2, kept_groups=1)'


def test_node_groups_move_as_a_whole():
  rules = {'moe.balance': ('loss_free_bias()', 'device_loss(devices=2)')}
  model = loops.sparse(NODES)
  run('permute(order=(3, 2, 0, 1))', model)
  for seed in range(3):
    run('permute(blocks=2)', model, seed=seed)
  with pytest.raises(
    UserError, match=r'sigmoid_top_k chooses others .* \(0, 2'
  ):
    run('permute(order=(0, 2, 1, 3))', model)
  model = loops.sparse(**rules)
  run('permute(order=(3, 2, 0, 1))', model)
  with pytest.raises(
    UserError, match='tears apart the 2 blocks of device_loss'
  ):
    run('permute(order=(0, 2, 1, 3))', model)


slow = lambda *case: pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.parametrize(
  ('router', 'kind'),
  [
    (SOFTMAX[0], BIASED),
    (SOFTMAX[1], {}),
    (SIGMOID, BIASED),
    (SHARED_OUT, {}),
    slow(SOFTMAX[0], {}),
    slow(SOFTMAX[1], BIASED),
    slow(SIGMOID, {}),
    slow(SHARED_OUT, BIASED),
  ],
)
def test_slices_and_copies_change_nothing(router, kind):
  model = loops.sparse(router, **kind)
  for spec, F in (('split(parts=4)', 8), ('duplicate(times=3)', 32)):
    times = 32 // F if 'split' in spec else 3
    made = run(spec, model)
    moe = made.config.moe
    assert (moe.num_experts, moe.d_ff) == (4 * times, F)
    same_outputs(made, model)
    factor = {SIGMOID: 1}.get(router, times)
    wo = [m.layers[0]['moe/experts/wo'] for m in (made, model)]
    scale = factor if 'split' in spec else factor / times
    np.testing.assert_allclose(wo[0][0], scale * wo[1][0][:F], rtol=1e-6)
    bias = [m.balance[0]['moe/state/loss_free_bias'] for m in (made, model)]
    shared = 1 if 'sigmoid' in router else times
    np.testing.assert_array_equal(
      bias[0], np.repeat(bias[1] / np.float32(shared), times)
    )


def test_a_copy_beside_some():
  model = loops.sparse()
  made = run('duplicate(experts=(1, 3))', model)
  assert made.config.moe.num_experts == 6
  assert registry.build('routers', made.config.moe.router).k == 2
  wo = [m.layers[0]['moe/experts/wo'] for m in (made, model)]
  np.testing.assert_array_equal(wo[0], wo[1][[0, 1, 1, 2, 3, 3]])


def test_what_cannot_be_split():
  with pytest.raises(UserError, match='sigmoid_top_k does not give 2 copies'):
    run('split()', loops.sparse(NODES))
  with pytest.raises(UserError, match='the router switch has no k'):
    run('split()', loops.sparse('switch()'))
  model = loops.sparse('switch()')
  made = run("split(router='top_k(k=2, renormalize=False)')", model)
  same_outputs(made, model)
  with pytest.raises(UserError, match='all experts share wi, which lies'):
    run('split()', loops.sparse(**{'moe.experts': 'shared_low_rank(rank=2)'}))
  with pytest.raises(UserError, match='d_ff=32: 5 slices'):
    run('split(parts=5)', loops.sparse())
  with pytest.raises(UserError, match='the router hash has no row'):
    run('permute()', loops.sparse('hash()', **{'moe.balance': ()}))
  with pytest.raises(UserError, match='share_experts=2: layers share'):
    run('permute()', loops.sparse(**{'moe.share_experts': 2}))


def test_removal_is_as_if_they_had_not_been_there():
  """By hand; and the other experts' weights grow as a softmax's do."""
  model, x_TD = loops.sparse(SOFTMAX[1], **{'moe.balance': ()}), loops.tokens()
  made = run('remove(experts=(1, 2))', model)
  old, new = model.layers[2], made.layers[2]
  np.testing.assert_array_equal(
    new['moe/experts/wo'], old['moe/experts/wo'][[0, 3]]
  )
  np.testing.assert_array_equal(
    new['moe/router/kernel'], old['moe/router/kernel'][:, [0, 3]]
  )
  logits = x_TD.astype(np.float64) @ old['moe/router/kernel'][:, [0, 3]]
  weights = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  np.testing.assert_allclose(loops.weights(made, 2, x_TD), weights, rtol=1e-9)
  alone = run('remove(experts=(0, 1, 2))', model)
  assert registry.build('routers', alone.config.moe.router).k == 1
  for experts in ((), (4,), (-1,), (0, 1, 2, 3), ('a',), (1, 1)):
    with pytest.raises(UserError, match='remove: experts='):
      run(f'remove(experts={experts})', model)


def test_removal_carries_moments():
  model = loops.sparse(optimizer=True)
  made = run('remove(experts=(1,), optimizer=True)', model)
  for name, tree in made.moments.items():
    old = model.moments[name].layers[0]
    np.testing.assert_array_equal(
      tree.layers[0]['moe/experts/wo'], old['moe/experts/wo'][[0, 2, 3]]
    )
    np.testing.assert_array_equal(
      tree.layers[0]['moe/router/kernel'],
      old['moe/router/kernel'][:, [0, 2, 3]],
    )


def test_local_experts_stay():
  model = loops.sparse(**{'moe.local_experts': ('zero(count=2)',)})
  for spec, left in (
    ('remove(experts=(1,))', [0, 2, 3, 4, 5]),
    ('permute(order=(3, 1, 0, 2))', [3, 1, 0, 2, 4, 5]),
  ):
    made = run(spec, model)
    kernel = [m.layers[0]['moe/router/kernel'] for m in (made, model)]
    np.testing.assert_array_equal(kernel[0], kernel[1][:, left])
    bias = [m.balance[0]['moe/state/loss_free_bias'] for m in (made, model)]
    np.testing.assert_array_equal(bias[0], bias[1][left])
  with pytest.raises(UserError, match='does not give 2 copies of an expert'):
    run('duplicate()', model)


@pytest.mark.slow
def test_factored_moments_go_along():
  """Of [D, E] sums over D have experts, sums over E none."""
  fields = {'train.optimizer': 'adafactor(min_dim=4)'}
  model, order = loops.sparse(optimizer=True, **fields), [2, 0, 3, 1]
  made = run(f'permute(order={tuple(order)})', model)
  seen = set()
  for name, tree in model.moments.items():
    for k, old in tree.layers[0].items():
      new = made.moments[name].layers[0][k]
      if k.startswith('moe/experts/'):
        np.testing.assert_array_equal(new, old[order])
      elif k == 'moe/router/kernel' and old.shape == (4,):
        np.testing.assert_array_equal(new, old[order])
        seen.add('over D')
      else:
        np.testing.assert_array_equal(new, old)
        seen.add((k, old.shape))
  assert {'over D', ('moe/router/kernel', (loops.D,))} <= seen
  model = loops.sparse(optimizer=True, **fields, **{'moe.num_experts': loops.D})
  with pytest.raises(UserError, match='which axis is of experts cannot be'):
    run('permute()', model)


def loads(tmp_path, rows):
  path = tmp_path / 'loads.json'
  path.write_text(json.dumps(rows))
  return repr(str(path))


def test_those_that_are_used_least_leave(tmp_path):
  model = loops.sparse()
  use = loads(tmp_path, [[1, 5, 3, 1], [7, 0, 7, 7]])
  made = run(f'prune(num_experts=2, loads={use})', model)
  for i, left in ((0, [1, 2]), (2, [0, 2])):
    for k in ('moe/experts/wo', 'moe/experts/wi_gate'):
      np.testing.assert_array_equal(made.layers[i][k], model.layers[i][k][left])
    bias = [m.balance[i]['moe/state/loss_free_bias'] for m in (made, model)]
    np.testing.assert_array_equal(bias[0], bias[1][left])
  loops.same(run(f'prune(num_experts=4, loads={use})', model), model)
  few = loads(tmp_path, [[1, 2]])
  with pytest.raises(
    UserError, match='of 1 layers and 2 experts; the model has'
  ):
    run(f'prune(num_experts=2, loads={few})', model)
  with pytest.raises(UserError, match='num_experts=5 of 4'):
    run(f'prune(num_experts=5, loads={use})', model)
  with pytest.raises(UserError, match='No such file'):
    run("prune(num_experts=2, loads='/nowhere')", model)


@pytest.mark.parametrize('by', ['rows', 'weights'])
def test_copies_merge_into_what_they_are_copies_of(by):
  """Three of each, in another order in all."""
  model = loops.sparse(**{'moe.balance': ()})
  many = run('duplicate(times=3)', model)
  order = (0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11)
  mixed = run(f'permute(order={order})', many)
  made = run(f'merge_similar(num_experts=4, k=2, by={by!r})', mixed)
  loops.same(made, model)
  assert registry.build('routers', made.config.moe.router).k == 2


def test_a_merger_is_the_weighted_average(tmp_path):
  model = loops.sparse()
  layers = list(map(dict, model.layers))
  for i in (0, 2):  # 1 and 3 are nearly alike
    for k in ('wi_gate', 'wi_up', 'wo'):
      v = layers[i][f'moe/experts/{k}'] = layers[i][f'moe/experts/{k}'].copy()
      v[3] = 1.01 * v[1]
  near = model.replace(layers=tuple(layers))
  use = loads(tmp_path, [[1, 1, 1, 3]] * 2)
  made = run(f'merge_similar(num_experts=3, loads={use})', near)
  old, new = near.layers[2], made.layers[2]
  both = (old['moe/experts/wo'][1] + 3.0 * old['moe/experts/wo'][3]) / 4
  np.testing.assert_allclose(new['moe/experts/wo'][1], both, rtol=1e-6)
  np.testing.assert_array_equal(
    new['moe/experts/wo'][[0, 2]], old['moe/experts/wo'][[0, 2]]
  )
  kernel = old['moe/router/kernel']
  np.testing.assert_allclose(
    new['moe/router/kernel'][:, 1],
    (kernel[:, 1] + 3 * kernel[:, 3]) / 4,
    rtol=1e-5,
  )
