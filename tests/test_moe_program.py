"""The layer's program and its seams: exchanges, noise, dtype, branch, carry."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn, struct

from moe_jax import registry, types
from moe_jax.balancing import base as balancing
from moe_jax.layers import linen
from moe_jax.parallel import hlo
from moe_jax.routers import base as routers
from moe_jax.seating import orders
from tests import methods, test_moe
from tests.experts import test_glu

layer, variables, run = test_moe.layer, test_moe.variables, test_moe.run
X, B, L, E = test_moe.X, test_moe.B, test_moe.L, test_moe.E


def test_forward_has_two_all_to_alls_and_one_sum():
  m = layer('scatter()', sizes=dict(data=2, expert=4))
  forward = jax.jit(lambda v, x: m.apply(v, x, train=True))
  text = forward.lower(variables(), X).compile().as_text()
  counts = hlo.count_collectives(text)
  assert counts.pop('all-to-all') == 2
  # What is left are the sums of losses and counts.
  assert set(counts) == {'all-reduce'}


@pytest.mark.parametrize(
  ('options', 'exchanges'),
  [('host=2', 4), ('pipeline_degree=2', 4), ('host=4', 2)],
)
def test_stages_and_chunks_multiply_the_exchanges(options, exchanges):
  """A host of the whole axis leaves nothing to exchange across hosts."""
  m = layer(f'scatter({options})', sizes=dict(data=2, expert=4))
  forward = jax.jit(lambda v, x: m.apply(v, x, train=True))
  text = forward.lower(variables(), X).compile().as_text()
  assert hlo.count_collectives(text)['all-to-all'] == exchanges


def test_one_device_has_no_collective():
  m = layer('scatter()')
  forward = jax.jit(lambda v, x: m.apply(v, x, train=True))
  text = forward.lower(variables(), X).compile().as_text()
  assert hlo.count_collectives(text) == {}


def test_hlo_counter_sees_tuples_and_asynchronous_pairs():
  text = """
  %a = f32[2]{0} all-to-all(f32[2]{0} %x), replica_groups={}
  %b = (f32[2]{0}, f32[4]{0}) all-reduce(%x, %y), to_apply=%add
  %c = (f32[2], f32[4]) all-gather-start(%x), dimensions={0}
  %d = f32[4] all-gather-done(%c)
  %w = (f32[1], f32[1], f32[1], f32[1], f32[1], /*index=5*/f32[1]) all-to-all()
  ROOT %e = f32[4] ragged-all-to-all(%x, %y)
  %f = f32[4] fusion(%a), calls=%all-to-all.1
  """
  assert hlo.count_collectives(text) == {
    'all-to-all': 2,
    'all-reduce': 1,
    'all-gather': 1,
    'ragged-all-to-all': 1,
  }


def test_noise_follows_the_group_not_the_device():
  """The router's noise and the lot of the seating."""
  v, jitter = variables('switch()'), 'switch(jitter=0.5)'
  lot = orders.build('random_tokens()')

  def apply(router, sizes, **fields):
    m = layer(router=router, sizes=sizes, **fields)
    rngs = {'router': jax.random.key(3)}
    run = jax.jit(lambda v, x: m.apply(v, x, train=True, rngs=rngs)[0])
    return np.asarray(run(v, X))

  y = apply(jitter, {}, seating=lot)
  other = apply(jitter, dict(data=2, expert=4), seating=lot)
  np.testing.assert_allclose(y, other, atol=1e-6)
  assert np.abs(y - apply(jitter, {})).max() > 0.01
  assert np.abs(y - apply('switch()', {}, seating=lot)).max() > 0.01


def test_bfloat16_keeps_the_router_in_float32():
  m = layer(dtype=jnp.bfloat16, capacity_factor=None)
  (_, (y, aux)), _ = run(m, variables())
  (_, (y_f32, aux_f32)), _ = test_moe.want('top_k()', None, None)
  assert y.dtype == jnp.bfloat16
  assert aux.loss.dtype == jnp.float32
  np.testing.assert_array_equal(
    aux.cause, aux_f32.cause
  )  # nothing dropped either way
  np.testing.assert_allclose(y.astype(np.float32), y_f32, atol=0.05)


@pytest.mark.parametrize('branch', ['shared', 'gated'])
def test_dense_branch(branch):
  """The branch adds an FFN that every token takes, gated or not."""
  kind = registry.build('experts', 'glu()', d_ff=6)
  m = layer(dense_branch=branch, dense=kind)
  v = jax.jit(lambda k: nn.unbox(m.init(k, X, train=True)))(jax.random.key(0))
  y, _, _ = jax.jit(lambda v: m.apply(v, X, train=True))(v)
  plain, _, _ = jax.jit(
    lambda v: layer().apply(
      {
        'params': {k: v['params'][k] for k in ('router', 'experts')},
        'balance': v['balance'],
      },
      X,
      train=True,
    )
  )(v)
  ffn = {k: np.asarray(w)[None] for k, w in v['params']['dense']['ffn'].items()}
  extra = np.array([[test_glu.glu(ffn, 0, x) for x in row] for row in X])
  if branch == 'gated':
    gate = X @ np.asarray(v['params']['dense_gate'])
    extra = extra / (1 + np.exp(-gate))
  np.testing.assert_allclose(y - plain, extra, atol=1e-4)


def test_carry_reaches_the_next_layer():
  """MoE++'s seam: what a router leaves, the next one finds, in its place."""

  @struct.dataclass
  class Counting(routers.Router):
    def init(self, key, E, D):
      return routers.init_linear(key, E, D)

    def experts_per_token(self, E):
      return 1.0

    def init_carry(self, T, E):
      return jnp.zeros(T)

    def __call__(self, params, x_TD, ctx):
      r = registry.build('routers', 'switch()')(params, x_TD, ctx)
      return r.replace(carry=ctx.carry + x_TD[:, 0])

  m = layer(sizes=dict(data=2, expert=4))
  m = linen.MoE(dataclasses.replace(m.core, router=Counting()))
  carry = jnp.ones((B, L))
  _, out, _ = jax.jit(lambda v, c: m.apply(v, X, None, c, train=True))(
    variables('switch()'), carry
  )
  np.testing.assert_allclose(out, 1 + X[..., 0], rtol=1e-6)


def test_errors_name_value_and_choices():
  def trace(m, x=X, method='apply'):
    first = variables() if method == 'apply' else jax.random.key(0)
    jax.eval_shape(lambda: getattr(m, method)(first, x, train=True))

  with pytest.raises(
    ValueError, match=r'group_size=12 .* 64 tokens .*: 8, 16, 4'
  ):
    trace(layer(group_size=12))
  with pytest.raises(ValueError, match=r'batch 4 is not divisible by the 8'):
    trace(layer(sizes=dict(data=8)), X[:4])
  with pytest.raises(ValueError, match="'both'; valid: none, shared, gated"):
    trace(layer(dense_branch='both'))
  with pytest.raises(ValueError, match=r'host=3 does not divide .* size 4'):
    trace(layer('scatter(host=3)', sizes=dict(data=2, expert=4)))
  with pytest.raises(ValueError, match='pipeline_degree=0 must be a whole'):
    layer('scatter(pipeline_degree=0)')
  with pytest.raises(ValueError, match='k=5 exceeds num_experts=4'):
    trace(layer(router='top_k(k=5)'), method='init')


def test_rules_with_a_state_are_declared():
  for row in methods.rows('balancing'):
    rule = registry.build('balancing', row.spec)
    assert (rule.init(E) is not None) == row.state
    assert not row.state or rule.scope == 'global'
  assert balancing.init_states((), E) == {}


def test_causes_are_complete():
  named = (types.KEPT, types.CAPACITY, types.RECEIVER, types.PADDING)
  assert (*named, types.UNSENT, types.LOCAL) == tuple(range(len(types.CAUSES)))
