"""Causality: what a decoder's routing options let a token know.

The future is changed and the past is looked at. Capacity that binds lets later
tokens take earlier ones' seats in every published seating but positional top-1,
a fact that the papers do not mention.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

from configs import presets
from moe_jax import registry
from moe_jax.layers import causality
from moe_jax.models import factory, records
from moe_jax.routers import base as routers
from tests import tiny

B, L, V, CUT = 8, 16, 32, 9
TIGHT, AMPLE = 0.5, 4.0
THRESHOLD = (
  "top_k(k=3, second_policy='threshold', threshold=0.3, policy_in_eval=True)"
)
# (router, seating, capacity factor) -> whether the past may not change.
CASES = [
  ('switch()', 'rank_major()', TIGHT, True),
  ('switch()', 'token_major()', TIGHT, True),
  ('switch()', 'batch_prioritized()', TIGHT, False),
  ('switch()', 'highest_weight()', TIGHT, False),
  ('switch()', 'batch_prioritized()', AMPLE, True),
  ('top_k()', 'rank_major()', TIGHT, False),
  ('top_k()', 'rank_major()', AMPLE, True),
  ('top_k()', 'token_major()', TIGHT, True),
  ('top_k()', 'batch_prioritized()', TIGHT, False),
  ("top_k(k=3, renormalize='kept')", 'token_major()', TIGHT, True),
  ("top_k(renormalize='kept')", 'rank_major()', TIGHT, False),
  (THRESHOLD, 'rank_major()', TIGHT, False),
  (THRESHOLD, 'token_major()', TIGHT, True),
  ('no_token_left_behind(k=3)', 'rank_major()', TIGHT, False),
  ('no_token_left_behind(k=3)', 'token_major()', TIGHT, False),
  ('tests.test_causality.OneOrTwo()', 'rank_major()', TIGHT, False),
  ('vmoe()', 'rank_major()', TIGHT, False),
  ('vmoe()', 'rank_major()', AMPLE, True),
]


@dataclasses.dataclass(frozen=True)
class OneOrTwo(routers.Router):
  """Two choices where the second is nearly as good: of few tokens, one says."""

  def init(self, key, E, D):
    return routers.init_linear(key, E, D)

  def experts_per_token(self, E):
    return 1.0

  def __call__(self, params, x_TD, ctx):
    return registry.build('routers', THRESHOLD)(params, x_TD, ctx)


def config(router, seating, factor, **fields):
  return tiny.config(
    **{
      'model.num_layers': 1,
      'moe.layers': 'all',
      'moe.group_size': L,  # one sequence: nobody else is in the way
      'moe.balance': (),
      'moe.router': router,
      'moe.seating': seating,
      'moe.capacity_factor': factor,
      'moe.eval_capacity_factor': factor,
      'moe.allow_noncausal': True,
    }
    | fields
  )


def batch(inputs):
  tile = lambda v: np.tile(np.asarray(v, np.int32), (B, 1))
  return {
    'inputs': inputs,
    'positions': tile(np.arange(L)),
    'segments': tile(np.ones(L)),
  }


@functools.cache
def params():
  """Of a model with a decided router; the same for every option."""
  c = config('switch()', 'rank_major()', TIGHT)
  model = factory.make(c, V)
  dummy = factory.dummy_batch(c, B, L)
  init = jax.jit(lambda key: nn.unbox(model.init(key, dummy, train=False)))
  v = init(jax.random.key(0))['params']
  v['decoder']['prefix_0']['moe']['router']['kernel'] *= 5
  return v


@pytest.mark.parametrize(('router', 'seating', 'factor', 'causal'), CASES)
def test_future_changes_the_past_only_where_declared(
  router, seating, factor, causal
):
  c = config(router, seating, factor)
  model = factory.make(c, V)
  stack_ = model.stack_config
  assert (causality.leak(stack_.moe, stack_.d_model) == '') == causal
  v = {'params': params()}
  apply = jax.jit(lambda b: model.apply(v, b, train=False)[0])
  rng = np.random.default_rng(0)
  inputs = rng.integers(3, V, (B, L)).astype(np.int32)
  base = np.asarray(apply(batch(inputs)))[:, :CUT]
  changed = False
  for _ in range(4):
    other = inputs.copy()
    other[:, CUT:] = rng.integers(3, V, (B, L - CUT))
    past = np.asarray(apply(batch(other)))[:, :CUT]
    changed |= not np.array_equal(past, base)
  assert changed != causal


@pytest.mark.parametrize(('router', 'seating', 'factor', 'causal'), CASES)
def test_a_decoder_refuses_what_is_not_causal(router, seating, factor, causal):
  c = config(router, seating, factor, **{'moe.allow_noncausal': False})
  if causal:
    factory.make(c, V)
    return
  with pytest.raises(ValueError, match=r'not causal: .*allow_noncausal=True'):
    factory.make(c, V)


def test_the_encoder_of_an_encoder_decoder_is_not_asked():
  """Batch-prioritised in the encoder, token-major in the decoder."""
  t5 = {
    'model.kind': 'encoder_decoder',
    'model.positions': 'relative',
    'data.objective': 'span_corruption()',
    'moe.allow_noncausal': False,
  }
  c = config('top_k()', 'batch_prioritized()', TIGHT, **t5)
  with pytest.raises(ValueError, match=r'not causal: .*BatchPrioritized'):
    factory.make(c, V)
  c.unlock()
  c.moe.decoder.seating = 'token_major()'
  model = factory.make(c, V)
  seating = [s.moe.seating for s in model.stacks.values()]
  assert [type(s).__name__ for s in seating] == [
    'BatchPrioritized',
    'TokenMajor',
  ]


def test_generation_is_dropless_and_so_causal():
  c = config(
    'top_k()', 'batch_prioritized()', TIGHT, **{'moe.allow_noncausal': False}
  )
  factory.make(c, V, cache_length=L)


def test_the_papers_preset_allows_it_and_says_so_once(monkeypatch):
  """ST-MoE seats rank-major top-2 in its decoder."""
  said = []
  monkeypatch.setattr(
    records.logging,
    'log_first_n',
    lambda level, text, n, *args: said.append((level, n, text % args)),
  )
  c = config('switch()', 'rank_major()', 1.0)
  c.unlock()
  factory.make(c, V)
  assert said == []
  presets.apply(c, presets.st_moe() | {'moe.layers': 'all'})
  factory.make(c, V)
  assert [(level, n) for level, n, _ in said] == [(records.logging.WARNING, 1)]
  assert 'not causal: where capacity binds, RankMajor' in said[0][2]


def test_what_does_not_fit_is_told_before_the_router_is_tried():
  """Experts without computation are among those that it has in groups."""
  fields = {
    'moe.router': 'sigmoid_top_k(k=2, groups=4, kept_groups=2)',
    'moe.seating': 'token_major()',
    'moe.num_experts': 8,
    'moe.local_experts': ('zero(count=3)',),
  }
  with pytest.raises(ValueError, match='groups=4 must divide num_experts=11'):
    factory.make(tiny.config(**fields), V)
