"""Planned FLOPs and exchanges against those of traced programs."""

import math

import jax
import pytest

from moe_jax.models import factory
from moe_jax.planning import (
  traffic,
)
from moe_jax.training import plans
from tests import test_planning

# As many rows as edges, so that the experts' products are the active ones.
BALANCED = {
  'moe.allow_noncausal': True,
  'moe.capacity_rule': 'per_choice()',
  'moe.capacity_factor': 1.0,
}


def jaxprs(eqn):
  for v in jax.tree.leaves(
    list(eqn.params.values()),
    is_leaf=lambda v: hasattr(v, 'eqns') or hasattr(v, 'jaxpr'),
  ):
    inner = getattr(v, 'jaxpr', v)
    if hasattr(inner, 'eqns'):
      yield inner


def walk(jaxpr, times=1):
  """(equation, how often it runs), those inside of others too."""
  for eqn in jaxpr.eqns:
    yield eqn, times
    n = eqn.params['length'] if eqn.primitive.name == 'scan' else 1
    for inner in jaxprs(eqn):
      yield from walk(inner, times * n)


def product_flops(jaxpr):
  """2 for each multiplication of every matrix product."""
  total = 0
  for eqn, times in walk(jaxpr):
    if eqn.primitive.name == 'dot_general':
      (contract, _), _ = eqn.params['dimension_numbers']
      left = eqn.invars[0].aval.shape
      inner = math.prod(left[i] for i in contract)
      total += times * 2 * inner * math.prod(eqn.outvars[0].aval.shape)
  return total


def trace(session, *, grad=False):
  """The model's forward pass, or its gradient, on a batch of the config's."""
  lengths = {'decoder': session.config.data.seq_len}
  if session.config.model.kind == 'encoder_decoder':
    # By hand: 15 % noise in spans of 3; 32 are 35 raw tokens, 5 of them noise.
    lengths = {'encoder': 32, 'decoder': 8}
  rows = session.config.train.batch_size
  batch = jax.eval_shape(
    lambda: factory.dummy_batch(
      session.config, rows, session.config.data.seq_len, lengths['decoder']
    )
  )

  def loss(params, batch):
    keys = {k: jax.random.key(0) for k in ('dropout', 'router')}
    logits, _ = session.model.apply(
      {'params': params}, batch, train=True, rngs=keys
    )
    return logits.sum()

  f = jax.grad(loss) if grad else loss
  return jax.make_jaxpr(f)(session.layout.params, batch).jaxpr


@pytest.mark.parametrize(
  'overrides',
  [
    {'moe.layers': 'none'},
    {'moe.router': 'top_k(k=2)'},
    {
      'moe.router': 'top_k(k=2)',
      'moe.experts': 'shared_low_rank(rank=3)',
      'model.ffn': 'shared_low_rank(rank=3)',
    },
    {'moe.layers': 'none', 'model.tied_head': False}
    | test_planning.ENCODER_DECODER,
    {
      'moe.extra_ffn': 'after',
      'moe.dense_branch': 'gated',
      'moe.dense_branch_d_ff': 8,
      'moe.decoder.router': 'top_k(k=2)',
      'moe.decoder.group_size': 8,
      'model.ffn': "glu(activation='gelu')",
      'model.num_layers': 4,
    }
    | test_planning.ENCODER_DECODER,
  ],
  ids=['dense', 'top-2', 'shared', 'T5', 'MoE-T5'],
)
def test_forward_flops_are_the_traced_products(overrides):
  """The products of the program, at a capacity that pads nothing."""
  session = plans.make(test_planning.small(**BALANCED | overrides), 'exact()')
  rows = session.config.train.batch_size
  assert product_flops(trace(session)) == rows * session.forward_flops()


_COLLECTIVES = {
  'all_to_all': 'all-to-all',
  'all_gather': 'all-gather',
  'reduce_scatter': 'reduce-scatter',
}


def exchanged(jaxpr):
  """Bytes by kind of all collectives but sums, as a device hands them over.

  Without an fsdp axis they are the dispatch's.
  """
  total = dict.fromkeys(_COLLECTIVES.values(), 0)
  for eqn, times in walk(jaxpr):
    name = eqn.primitive.name
    if name in _COLLECTIVES:
      # A gather counts with what it brings.
      side = eqn.outvars if name == 'all_gather' else eqn.invars
      size = side[0].aval.size * side[0].aval.dtype.itemsize
      total[_COLLECTIVES[name]] += times * size
  return total


@pytest.mark.parametrize(
  ('dispatch', 'remat', 'layers'),
  [
    pytest.param(test_planning.SCATTER, 'none', 4, marks=pytest.mark.slow),
    pytest.param(test_planning.SCATTER, 'full', 2, marks=pytest.mark.slow),
    pytest.param(test_planning.SCATTER, 'dots', 2, marks=pytest.mark.slow),
    (test_planning.SCATTER, 'dispatch', 2),
    pytest.param(
      'scatter(pipeline_degree=2)', 'full', 2, marks=pytest.mark.slow
    ),
    (test_planning.GATHER, 'none', 2),
    pytest.param(test_planning.GATHER, 'full', 2, marks=pytest.mark.slow),
    pytest.param(test_planning.GATHER, 'dispatch', 2, marks=pytest.mark.slow),
    ('ragged_all_to_all()', 'full', 2),
  ],
)
def test_exchanged_bytes_are_the_traced_ones(dispatch, remat, layers):
  """Of every collective in the gradient's program, on one device."""
  overrides = {
    'model.num_layers': layers,
    'model.dtype': 'bfloat16',
    'model.remat': remat,
    'moe.decoder.group_size': 8,
    'moe.dispatch': dispatch,
    'moe.capacity_factor': 1.25,
    'train.batch_size': 16,
  }
  config = test_planning.small(**test_planning.ENCODER_DECODER | overrides)
  mesh = 'exact(data=2, expert=2, model=2)'
  session = plans.make(config, mesh)
  traced = exchanged(trace(session, grad=True))
  # A traced ragged exchange holds both, that of CPU and the real one.
  cpu = dispatch.startswith('ragged')
  planned = dict.fromkeys(traced, 0)
  pairs = [
    (v, plans.dispatch(dispatch)) for v in plans.layers(session).values()
  ]
  for layer, d in pairs:
    for c in traffic.collectives(layer, d, cpu):
      times = 1 + (c.again and remat in ('full', 'dots'))
      planned[c.kind] += layer.layers * times * c.payload()
  assert planned == traced and any(traced.values())
  if not cpu:
    total = sum(traced.values())
    moved = plans.describe(config, mesh)['all_to_all']
    assert moved['payload_per_device'] == total
    assert moved['leaving_per_device'] == moved['worst_per_device'] == total / 2
    assert moved['leaving_total'] == 8 * total / 2
