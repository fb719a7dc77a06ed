"""Fine-tuning: which parameters a run trains."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moe_jax.data import pipeline
from moe_jax.models import factory
from moe_jax.parallel import mesh as mesh_lib
from moe_jax.problems import base as problems
from moe_jax.runs import checkpoint, configs
from moe_jax.training import (
  loop,
  optimizers,
  session as session_lib,
  state as state_lib,
  step as step_lib,
  tuning,
)
from tests import tiny

WORDS = b'the router sends each token to one expert and the expert answers '
ENCODER_DECODER = {
  'model.kind': 'encoder_decoder',
  'model.positions': 'relative',
  'data.objective': 'span_corruption()',
  'data.seq_len': 32,
  'moe.group_size': 1,
}
KINDS = {'decoder': {}, 'encoder_decoder': ENCODER_DECODER}
BALANCE = ('switch_loss()', 'loss_free_bias()')


@pytest.fixture(scope='session')
def corpus(tmp_path_factory):
  root = tmp_path_factory.mktemp('corpus')
  rng = np.random.default_rng(0)
  documents = [b' '.join(rng.choice(WORDS.split(), 30)) for _ in range(80)]
  (root / 'a.txt').write_bytes(b'\n\n'.join(documents))
  return {
    'data.name': 'text_files',
    'data.dir': str(root),
    'data.cache': str(root / 'cache'),
  }


def noise(abstract, seed, size=0.1):
  """Noise of these shapes in these places: nothing is compiled."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda v: jax.device_put(
      (size * rng.normal(size=v.shape)).astype(v.dtype), v.sharding
    ),
    abstract,
  )


def read_rows(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


# By hand, of names: what each choice trains.
TRAINED = {
  'all': lambda n: True,
  'moe': lambda n: '/moe/' in n,
  'router': lambda n: '/moe/router/' in n,
  'non_moe': lambda n: '/moe/' not in n,
  'attention': lambda n: (
    ('/attention/' in n or '/cross/' in n)
    and n.rpartition('/')[2] in ('query', 'key', 'value', 'out')
  ),
  'ffn': lambda n: '/ffn/ffn/' in n or '/extra/ffn/' in n,
}


B1 = 0.9


@dataclasses.dataclass
class Steps:
  """Two updates of a tiny model on one device, without the loop.

  Attributes:
    before, after: parameters by name.
    states: of the balancing rules, before and after, by name.
    gradient: of the first step, by the name of the trained leaves.
    held: numbers in the optimizer's state.
    trained: parameters, by `tuning.size`.
    norm, flops: of the gradients; of a step.
  """

  before: dict
  after: dict
  states: tuple[dict, dict]
  gradient: dict
  held: int
  trained: int
  norm: float
  flops: float


@functools.cache
def steps(fields, kind, choice, clip=0.0, accumulate=1):
  fields = {
    'train.optimizer': f'adamw(b1={B1}, weight_decay=0.1)',
    'train.schedule': 'constant(value=0.01)',
    'train.clip': clip,
    'train.z_loss': 0.0,
    'train.accumulate': accumulate,
    'train.trainable': choice,
    'moe.extra_ffn': 'before',
    'moe.balance': BALANCE,
    'moe.dense_branch': 'gated',
    'moe.dense_branch_d_ff': 16,
    **dict(fields),
    **KINDS[kind],
  }
  config = tiny.config(**fields)
  mesh, model = mesh_lib.single(), factory.make(config, 384)
  problem = problems.of(config)
  dummy = session_lib.dummy(config, problem, mesh)
  lay = state_lib.layout(model, dummy)
  tx, _ = session_lib.make_optimizer(config, lay.batch_dims())
  # Parameters of noise, the rest of a start: nothing is compiled for them.
  first = jax.tree.map(jnp.zeros_like, state_lib.abstract(tx, lay, mesh))
  first = first.replace(params=noise(first.params, 0, 0.5))
  mask = tuning.trained(lay.batch_dims(), choice)
  step = step_lib.make_train_step(
    model, tx, problem=problem, seed=0, accumulate=accumulate, trained=mask
  )
  data = pipeline.load(config.data, cache_dir=config.data.cache)
  batch = data.batch(seed=0, batch_size=8, step=0)
  step = jax.jit(step).lower(first, batch).compile()
  cost = step.cost_analysis()
  cost = cost[0] if isinstance(cost, list) else cost
  state, metrics = step(first, batch)
  # The first moment after one step is (1 - b1) times the gradient.
  moments = {
    k.partition('/mu/')[2]: v / (1 - B1)
    for k, v in named(state.opt_state).items()
    if '/mu/' in k
  }
  held = sum(v.size for v in jax.tree.leaves(state.opt_state))
  state, _ = step(state, batch)
  return Steps(
    named(first.params),
    named(state.params),
    (named(first.balance), named(state.balance)),
    moments,
    held,
    tuning.size(first.params, mask),
    float(metrics['grad_norm']),
    cost['flops'],
  )


def named(tree):
  host = checkpoint.named(jax.device_get(tree))
  return {k: np.asarray(v) for k, v in host.items()}


@pytest.fixture(scope='session')
def fields(corpus):
  return tuple(corpus.items())


@pytest.mark.parametrize(
  ('kind', 'choice'),
  [
    *(('decoder', c) for c in tuning.CHOICES),
    *(
      pytest.param('encoder_decoder', c, marks=pytest.mark.slow)
      for c in tuning.CHOICES
    ),
  ],
)
def test_frozen_leaves_stay_to_the_bit(fields, kind, choice):
  run, wanted = steps(fields, kind, choice), 0
  for name, value in run.before.items():
    moved = not np.array_equal(value, run.after[name])
    assert moved == TRAINED[choice](name), name
    wanted += value.size if TRAINED[choice](name) else 0
  assert 0 < run.trained == wanted
  # Two moments of each trained number, and a count or two.
  assert 2 * wanted <= run.held <= 2 * wanted + 4


@pytest.mark.parametrize('choice', tuning.CHOICES)
def test_balancing_goes_with_the_router(fields, choice):
  """Two steps with a rate of 0.001: its bias is off by up to 0.002, or 0."""
  before, after = steps(fields, 'decoder', choice).states
  assert before.keys() == after.keys() and len(before) == 1
  (moved,) = (np.abs(after[k] - v).max() for k, v in before.items())
  want = 0.002 if choice in ('all', 'moe', 'router') else 0.0
  assert moved == pytest.approx(want, rel=1e-5)


def test_a_router_without_parameters_goes_with_its_layer():
  """In a block whose attention is trained or not."""
  for experts in (True, False):
    block = {'attention': {'query': not experts}, 'moe': {'experts': experts}}
    for router in ({}, {'router': {}}):
      moe = block['moe'] | router
      assert tuning.router_moves(block | {'moe': moe}) is experts
  frozen = {'router': {'kernel': False}, 'experts': True}
  assert not tuning.router_moves({'moe': frozen}) and tuning.router_moves(None)


def test_one_expert_alone_is_trained(fields):
  """Its slices, its column, nothing else: decay, moments and norm, too."""
  whole = steps(fields, 'decoder', 'all').gradient
  run, wanted, square = steps(fields, 'decoder', 'experts(of=(2,))'), 0, 0.0
  for name, value in run.before.items():
    after, own = run.after[name], '/moe/experts/' in name
    if not own and '/moe/router/' not in name:
      np.testing.assert_array_equal(after, value, err_msg=name)
      continue
    axis = list(value.shape).index(4) if own else -1
    apart = lambda v, at=axis: np.moveaxis(v, at, 0)
    moved = (apart(after) != apart(value)).any(tuple(range(1, value.ndim)))
    assert moved.tolist() == [False, False, True, False], name
    # Nothing of the others is in the moments, or in the norm.
    held, want = apart(run.gradient[name]), apart(whole[name])
    np.testing.assert_allclose(held[2], want[2], atol=1e-6)
    assert not held[[0, 1, 3]].any() and held[2].any()
    square += (want[2].astype(np.float64) ** 2).sum()
    wanted += held[2].size
  assert run.trained == wanted > 0
  assert run.norm == pytest.approx(square**0.5, rel=1e-3)
  before, after = run.states  # the others' bias would not be theirs
  assert all(np.array_equal(after[k], v) for k, v in before.items())


def test_experts_are_told_by_their_numbers():
  dims = {'moe': {'experts': {'wi': 1}, 'router': {'kernel': 0}}}
  mask = tuning.trained(dims, 'experts(of=(1,), router=False)')
  assert mask['moe']['router']['kernel'] is False
  shared = {'moe': {'experts': {'wi': 1, 'basis': 0}}, 'ffn': {'wi': 0}}
  mask = tuning.trained(shared, 'experts(of=(0, 2))')
  assert mask['moe']['experts']['basis'] is mask['ffn']['wi'] is False
  shapes = {'moe': {'experts': {'wi': (3, 5, 7), 'basis': (5,)}}}
  shapes = shapes | {'ffn': {'wi': (5,)}}
  tree = jax.tree.map(np.zeros, shapes, is_leaf=lambda v: type(v) is tuple)
  assert tuning.size(tree, mask) == 2 * 5 * 7
  for choice, message in {
    'experts(of=1)': 'a tuple of the numbers of experts',
    'experts(of=(-1,))': 'a tuple of the numbers of experts',
    'expert(of=(1,))': "unknown train.trainable 'expert'; valid: experts",
  }.items():
    with pytest.raises(ValueError, match=message):
      tuning.trained(dims, choice)
  with pytest.raises(ValueError, match=r'of=\(5,\).*; there are 3 of them'):
    tuning.size(tree, tuning.trained(shared, 'experts(of=(5,))'))
  odd = {'moe': {'experts': {'wi': 1}, 'router': {'tree': 0}}}
  with pytest.raises(ValueError, match="one has 'tree'"):
    tuning.trained(odd, 'experts(of=(1,))')


@pytest.mark.parametrize('choice', tuning.CHOICES[1:])
def test_gradients_are_those_of_the_whole(fields, choice):
  """Of the trained leaves; norms are of these alone."""
  whole = steps(fields, 'decoder', 'all').gradient
  run, square = steps(fields, 'decoder', choice), 0.0
  assert set(run.gradient) == {k for k in whole if TRAINED[choice](k)}
  for name, value in run.gradient.items():
    np.testing.assert_allclose(value, whole[name], atol=1e-6)
    square += (value.astype(np.float64) ** 2).sum()
  assert run.norm == pytest.approx(square**0.5, rel=1e-3)


def test_clipping_is_by_the_trained_norm(fields):
  """In two micro-batches."""
  plain = steps(fields, 'decoder', 'attention')
  run = steps(fields, 'decoder', 'attention', clip=0.01, accumulate=2)
  assert run.norm == pytest.approx(plain.norm, rel=1e-4) and run.norm > 0.01
  for name, value in run.gradient.items():
    want = plain.gradient[name] * 0.01 / plain.norm
    np.testing.assert_allclose(value, want, atol=1e-6)


def test_frozen_products_are_not_computed(fields):
  """Gradients of weights are a third of the products."""
  flops = {
    c: steps(fields, 'decoder', c).flops for c in ('all', 'attention', 'moe')
  }
  assert flops['attention'] < 0.9 * flops['all'], flops
  assert flops['moe'] < 0.9 * flops['all'], flops


@pytest.mark.parametrize(
  ('overrides', 'message'),
  [
    ({'eval.documents': 'half'}, "'all', 'even' or 'odd' is wanted"),
    ({'train.keep_at': (0.1, 2)}, r'is \(0.1, 2\); a tuple of shares'),
    ({'train.keep_at': (0.0,)}, 'above 0 and at most 1, is wanted'),
    ({'train.distill': 1.5}, 'a weight from 0 to 1 is wanted'),
    ({'train.distill': -0.1}, 'a weight from 0 to 1 is wanted'),
    ({'train.init_dense': True}, "train.init_from ''; a workdir is wanted"),
  ],
)
def test_wrong_fields(overrides, message):
  with pytest.raises(ValueError, match=message):
    configs.validate(tiny.config(**overrides))


def test_an_unknown_choice():
  wanted = r'valid: all, attention, experts\(\), ffn, moe, non_moe, router'
  with pytest.raises(ValueError, match=wanted):
    tuning.trained({}, 'routers')


def test_an_empty_choice(corpus, tmp_path):
  config = tiny.config(
    **corpus, **{'train.trainable': 'moe', 'moe.layers': 'none'}
  )
  with pytest.raises(ValueError, match="'moe': the model has no such param"):
    loop.train(config, str(tmp_path / 'w'))
  assert not (tmp_path / 'w' / 'config.json').exists()


def test_expert_dropout_is_of_experts_alone():
  """Switch, table 4: 0.4 in experts, 0.1 elsewhere."""
  config = tiny.config(
    **{
      'model.dropout': 0.1,
      'moe.experts': "mlp(activation='relu', dropout=0.4)",
      'moe.dense_branch': 'shared',
    }
  )
  stack = factory.make(config, 384).stacks['decoder']
  made = stack.moe
  assert (made.experts.dropout, made.dense.dropout) == (0.4, 0.1)
  assert (stack.layers[0].ffn.dropout, stack.dropout) == (0.1, 0.1)


def test_masks_leave_the_optimizer_as_it_is():
  """Adafactor on the trained leaves is Adafactor of a model without others."""
  w = jax.random.normal(jax.random.key(0), (2, 3, 4))
  tree = {'moe': {'w': w}, 'ffn': {'w': w[0]}}
  dims = {'moe': {'w': 1}, 'ffn': {'w': 0}}
  fields = {'train.optimizer': 'adafactor(min_dim=3)', 'train.clip': 1.0}
  config = tiny.config(**fields, **{'train.trainable': 'moe'})
  c = config.train
  alone, _ = optimizers.make(
    c.optimizer, c.schedule, steps=1, clip=1.0, batch_dims={'moe': {'w': 1}}
  )
  tx = session_lib.make_optimizer(config, dims)[0]
  mask = tuning.trained(tree, 'moe')
  part = tuning.select(tree, mask)
  assert isinstance(part['ffn']['w'], optax.MaskedNode)
  updates, _ = tx.update(part, tx.init(tree), part)
  want = {'moe': tree['moe']}
  want, _ = alone.update(want, alone.init(want), want)
  np.testing.assert_array_equal(updates['moe']['w'], want['moe']['w'])
