"""Zero-computation experts: kinds, and a layer that has some."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax import registry, types
from moe_jax.layers import linen, moe
from moe_jax.local_experts import base
from moe_jax.parallel import hlo, mesh as mesh_lib
from moe_jax.seating import capacity, seat
from tests import methods

B, L, D, E, T = 8, 4, 8, 4, 8
LOCAL = ('zero()', 'copy()', 'constant(count=2)')
Z = 4
ROWS = methods.rows('local_experts')


@pytest.mark.parametrize('row', ROWS, ids=lambda row: row.spec)
def test_equals_reference(row):
  x_TD = jax.random.normal(jax.random.key(0), (5, D))
  weight_TJ = jax.random.uniform(jax.random.key(1), (5, 2))
  kind = registry.build('local_experts', row.spec)
  params = kind.init(jax.random.key(2), D)
  params = jax.tree.map(lambda v: 30 * v, params)
  got = kind(params, x_TD, weight_TJ[:, : kind.count])
  want = np.zeros((5, D))
  for t in range(5):
    for j in range(kind.count):
      y_D = row.expected(params, j, np.asarray(x_TD[t]))
      want[t] += float(weight_TJ[t, j]) * y_D
  got = np.zeros((5, D)) if got is None else got
  np.testing.assert_allclose(got, want, atol=1e-5)


def layer(mesh='auto()', dispatch='scatter()', **fields):
  shape = mesh_lib.shape(mesh, 8 if 'exact' in mesh else 1, E)
  return linen.MoE(
    moe.MoE(
      num_experts=E,
      router=registry.build('routers', 'top_k(k=3, renormalize=False)'),
      experts=registry.build('experts', 'mlp(d_ff=12)'),
      dispatch=registry.build('dispatch', dispatch),
      balance=(registry.build('balancing', "switch_loss(count='all')"),),
      mesh=mesh_lib.make(shape),
      **{'group_size': T, 'local_experts': LOCAL} | fields,
    )
  )


def variables(m):
  x = jnp.ones((B, L, D))
  v = jax.jit(lambda k: m.init({'params': k}, x, train=True))
  v = nn.meta.unbox(v(jax.random.key(0)))
  big = lambda w, key: w + 0.5 * jax.random.normal(key, w.shape)
  leaves, tree = jax.tree.flatten(v['params'])
  keys = jax.random.split(jax.random.key(3), len(leaves))
  return jax.tree.unflatten(tree, list(map(big, leaves, keys)))


X = jax.random.normal(jax.random.key(5), (B, L, D))
OUT = jax.random.normal(jax.random.key(6), (B, L, D))


def run(m, params):
  def loss(params, x):
    y, _, aux = m.apply({'params': params}, x, train=True)
    return (y * OUT).sum() + aux.loss, (y, aux)

  f = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
  return jax.device_get(f(params, X))


def by_loop(m, params, factor):
  """Every token through its experts, first choices first, by hand."""
  rule = m.core.capacity_rule
  C, C_local = capacity.rows(rule, factor, T, 3, E, Z)
  x = np.asarray(X, np.float64).reshape(-1, T, D)
  p = jax.tree.map(lambda v: np.asarray(v, np.float64), params)
  y, sent, local = np.zeros_like(x), 0, 0
  oracles = {registry.parse(row.spec)[0]: row.oracle for row in ROWS}
  place = {E: (0, 0), E + 1: (1, 0), E + 2: (2, 0), E + 3: (2, 1)}
  for g in range(x.shape[0]):
    logits = x[g] @ p['router']['kernel']
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    order = np.argsort(-probs, axis=-1)
    used = np.zeros(E + Z, int)
    for k in range(3):
      for t in range(T):
        e = order[t, k]
        if used[e] >= (C if e < E else C_local):
          continue
        used[e] += 1
        if e < E:
          sent += 1
          hidden = np.maximum(x[g, t] @ p['experts']['wi'][e], 0)
          out = hidden @ p['experts']['wo'][e]
        else:
          local += 1
          kind, j = place[e]
          own = p['local_experts'].get(str(kind), {})
          oracle = oracles[registry.parse(LOCAL[kind])[0]]
          out = oracle(own, j, x[g, t])
        y[g, t] += probs[t, e] * out
  return y.reshape(X.shape), sent, local


@pytest.mark.parametrize('factor', [None, 1.0])
@pytest.mark.parametrize('rule', ['per_choice()', 'moe_plus_plus(tau=0.5)'])
def test_layer_equals_loop(factor, rule):
  m = layer(capacity_factor=factor, capacity_rule=capacity.build(rule))
  params = variables(m)
  (_, (y, aux)), _ = run(m, params)
  want, sent, local = by_loop(m, params, factor)
  np.testing.assert_allclose(y, want, atol=2e-5)
  assert aux.load_E.shape == (E + Z,) and aux.load_E.sum() == B * L * 3
  assert aux.cause[types.KEPT] == sent and aux.cause[types.LOCAL] == local
  assert aux.cause.sum() == B * L * 3
  # Experts used are those that cost something.
  assert aux.health['used'] @ np.arange(17) == sent


@pytest.mark.parametrize(
  'dispatch',
  [
    'gather_reduce()',
    'ragged_all_to_all()',
    pytest.param('dense()', marks=pytest.mark.slow),
    pytest.param('einsum()', marks=pytest.mark.slow),
  ],
)
def test_dispatches_and_meshes_agree(dispatch):
  m = layer(capacity_factor=1.0)
  params = variables(m)
  want = run(m, params)
  mesh = 'exact(data=2,expert=2,model=2)'
  on_mesh = layer(mesh, dispatch, capacity_factor=1.0)
  got = run(on_mesh, params)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4),
    got,
    want,
  )


def test_what_is_local_is_not_sent():
  """The exchange of E experts is as large as without the others."""
  sizes = []
  for kinds in ((), layer().core.local_experts):
    m = layer(
      'exact(data=2,expert=4)',
      group_size=4,
      local_experts=kinds,
      capacity_rule='fixed(rows=4)',
    )
    v = jax.eval_shape(
      lambda m=m: nn.meta.unbox(
        m.init({'params': jax.random.key(0)}, X, train=True)
      )
    )
    f = jax.jit(lambda v, m=m: m.apply(v, X, train=True)[0])
    text = f.lower(v).compile().as_text()
    sizes.append(hlo.count_collectives(text)['all-to-all'])
  assert sizes[0] == sizes[1] == 2


def test_sent_takes_the_last_experts_out():
  r = types.Routing(
    token_N=jnp.arange(6) % 3,
    expert_N=jnp.array([0, 3, 2, 3, 4, 1]),
    weight_N=jnp.ones(6),
    num_experts=4,
    num_local=2,
    choices=2,
  )
  seated = seat.seat(r, ((1, 3), (1, 1)))
  got = seat.sent(seated)
  K, C, U, Lo = types.KEPT, types.CAPACITY, types.UNSENT, types.LOCAL
  assert got.cause_N.tolist() == [K, Lo, Lo, C, U, K]
  assert got.routing.expert_N.tolist() == [0, 2, 2, 2, 2, 1]
  assert got.capacity == ((1, 2),) and got.count_E.tolist() == [1, 1]


def test_weights_on_the_input_are_refused():
  r = types.Routing(
    jnp.zeros(1, int), jnp.zeros(1, int), jnp.ones(1), num_experts=2,
    num_local=1, weight_on='input',
  )  # fmt: skip
  kinds = (registry.build('local_experts', 'copy()'),)
  with pytest.raises(ValueError, match='weights on their output'):
    base.evaluate(kinds, {}, jnp.ones((1, D)), seat.seat(r, ((1, 2),)))
